"""Embedding of many slides."""
