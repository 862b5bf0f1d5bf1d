"""The forms in which the field writes conversations down: each becomes turns in the same way."""
