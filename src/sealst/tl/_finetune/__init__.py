"""Training of a SEAL model."""
