"""Losses of training, and what they are computed on."""
