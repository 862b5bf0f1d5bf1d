"""Large training data, written once in a form of which any sample is read by its number."""
