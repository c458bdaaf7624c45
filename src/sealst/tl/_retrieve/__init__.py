"""Search by gene, profile, spot or picture."""
