"""Xenium runs."""
