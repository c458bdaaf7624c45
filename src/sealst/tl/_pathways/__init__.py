"""Pathway activity."""
