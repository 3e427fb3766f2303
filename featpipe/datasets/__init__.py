"""Data sets: frozen lists of pictures with ids, labels and splits."""
