"""Benchmarks of featpipe and its alternatives, which take turns in one process."""
