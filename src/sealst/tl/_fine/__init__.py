"""Finer than a crop: what an encoder says of each of its patches."""
