"""The stages of the pipeline: extract, train, evaluate, predict; and looking after a cache."""
