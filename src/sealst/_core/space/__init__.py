"""Squares, spots, lattices and tissue in the plane."""
