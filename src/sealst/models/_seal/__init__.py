"""The SEAL model, on disk and on the hub."""
