"""Konsil: hospitals train one model together; no record leaves a hospital, no server owns the model."""
