"""Engines that keep the rules: one interface (base), one folder an engine."""
