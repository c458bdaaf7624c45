"""Slide-level models."""
