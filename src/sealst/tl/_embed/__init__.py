"""Embeddings and predictions of sections."""
