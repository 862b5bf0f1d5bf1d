"""Questions that a person asks a model: in the terminal, or on a page of this machine."""
