"""The daemon: the one place with clock, sockets and disk."""
