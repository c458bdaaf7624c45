"""Ways to adapt an encoder."""
