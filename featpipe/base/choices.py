"""The choices that a feature space has for its fields, without importing anything."""

POOLINGS = ("none", "avg", "max")
RESIZES = ("crop", "squash")
DECODERS = ("pillow", "pillow-draft")
PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = ("float16", "float32")
