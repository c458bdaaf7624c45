"""Folds of spots and of slides."""
