"""Frozen networks: what they are (``catalog``, no torch) and how they run (``network``)."""
