"""The folder of one training run: its head and everything that is written beside it."""
