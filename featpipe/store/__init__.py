"""The cache on disk: immutable feature segments, their index, verification and repair."""
