"""Figures of slide-level models."""
