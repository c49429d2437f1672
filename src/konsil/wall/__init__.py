"""The wall's socket and memory: what the training process and its node both need to speak to each other.

``line`` carries words and descriptors over a Unix socket; ``memory`` holds parameters in sealed files.
"""
