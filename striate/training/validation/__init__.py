"""Validation while training: the answer loss on held-out samples, and what follows from it."""
