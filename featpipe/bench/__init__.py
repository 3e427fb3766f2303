"""Measuring featpipe beside what people would use instead: in one process, in turns."""
