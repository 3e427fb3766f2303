"""Frozen networks: ``catalog`` describes them without importing torch, ``network`` runs them."""
