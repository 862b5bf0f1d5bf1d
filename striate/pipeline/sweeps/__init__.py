"""Sweeps: many runs of one base config, placed on the devices there are, and the table of what they reach."""
