"""Adapters around a user's model: one protocol (base), one file a framework."""
