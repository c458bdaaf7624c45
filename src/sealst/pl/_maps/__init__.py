"""Maps on the tissue, and galleries of crops."""
