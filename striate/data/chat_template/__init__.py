"""Chat templates: text of a conversation as a model reads it, and what a template may cost."""
