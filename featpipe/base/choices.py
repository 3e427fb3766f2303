"""The choices that a feature space has for its fields, without importing anything."""

POOLINGS = ("none", "avg", "max", "cls")
RESIZES = ("crop", "squash")
DECODERS = ("pillow", "pillow-draft")
PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = ("float16", "float32", "uint8")
FLOAT_DTYPES = ("float16", "float32")
"""What the features of a network can be stored as; the backbone ``pixels`` has uint8."""
CHANNELS = ("rgb", "grey")
"""Of pixels; some weights expect ``bgr``, which nobody asks for."""
ALL_CHANNELS = ("rgb", "bgr", "grey")
INTERPOLATIONS = ("bilinear", "bicubic")
AUGMENTATIONS = ("flip", "light", "standard")
"""Policies that draw the transforms of views."""
