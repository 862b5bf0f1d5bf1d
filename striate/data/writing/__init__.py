"""Training data written in the form that striate documents as its own."""
