"""What frozen blocks make of crops, kept on disk."""
