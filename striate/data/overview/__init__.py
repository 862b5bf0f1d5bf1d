"""What a source of training data holds, shown before anything is trained."""
