"""The backbone's weights: which there are, where they come from, and proof of what they are."""

from featpipe.weights.resolve import Weights, fetch_weights, open_weights

__all__ = ["Weights", "fetch_weights", "open_weights"]
