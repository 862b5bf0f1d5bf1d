"""Weights of a checkpoint on disk: where each tensor lies, what it is called, and matrices one at a time."""
