"""Decide which decoder layers leave a tuned model."""
