"""The model card of a checkpoint: what it tells, its metadata, its table of scores, its code, and as Markdown."""
