"""Cached features for other libraries: NumPy, scikit-learn and PyTorch."""
