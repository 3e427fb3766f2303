"""Foundations for all other packages: feature spaces, errors, ids, file writing, hardware."""
