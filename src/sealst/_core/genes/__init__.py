"""Genes: their names, panels and sets."""
