"""Visium and Visium HD, as Space Ranger writes them."""
