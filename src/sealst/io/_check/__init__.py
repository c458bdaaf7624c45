"""What a section is, and what will go wrong with it."""
