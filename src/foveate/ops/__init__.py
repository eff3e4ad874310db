"""Drop-in layers, one file a paper."""
