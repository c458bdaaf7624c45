"""HEST-1k and HEST-bench."""
