"""Training heads with PyTorch: one loop for every head that learns by gradients."""
