"""From image bytes to rows in the stores: one pass, shared by extraction and prediction."""
