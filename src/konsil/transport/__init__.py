"""Mutual TLS 1.3 frames between nodes, and an in-memory twin with the same interface."""
