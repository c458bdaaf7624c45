"""Stores of sections, one or many."""
