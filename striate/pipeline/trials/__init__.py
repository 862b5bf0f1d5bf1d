"""Smaller models that are tried and not kept: of a curve, and of `prune.until`."""
