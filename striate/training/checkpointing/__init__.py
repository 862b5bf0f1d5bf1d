"""Checkpoints of an unfinished training: what they hold, and whether they can be gone on with."""
