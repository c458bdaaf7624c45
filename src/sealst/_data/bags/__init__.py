"""Slides as bags of tile embeddings."""
