"""Samples that can't be used: broken ones, and those that are too long."""
