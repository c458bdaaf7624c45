"""What comes from outside: types and bounds of values, and parameters in YAML."""
