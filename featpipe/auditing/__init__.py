"""What may be wrong with a data set: found in its feature rows, in NumPy."""
