"""Callbacks: swarm training from inside of another framework's own loop.

One file a framework, imported only by those who use it: ``konsil.callbacks.keras``, ``.lightning`` and
``.huggingface``, each with a ``SwarmCallback``. ``attendance`` is what they share.
"""
