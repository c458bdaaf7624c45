"""Procedural sections with known truth."""
