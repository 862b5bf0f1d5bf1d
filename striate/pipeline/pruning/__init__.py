"""Pruning within a run: the ranking, where models lie, and healing."""
