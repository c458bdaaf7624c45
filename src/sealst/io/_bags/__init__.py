"""Bags of tile embeddings, from files and back."""
