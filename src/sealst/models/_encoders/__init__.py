"""Image encoders: records, weights, networks."""
