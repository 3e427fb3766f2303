"""Metrics, figures and pages: one self-contained HTML page per evaluation, everything escaped."""
