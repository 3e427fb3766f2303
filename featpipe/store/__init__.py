"""The cache on disk: immutable segments of features and frozen data set files."""
