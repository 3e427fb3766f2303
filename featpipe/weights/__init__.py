"""The backbone's weights: known names, providers, file formats and digests."""

from featpipe.weights.resolve import Weights, fetch_weights, open_weights

__all__ = ["Weights", "fetch_weights", "open_weights"]
