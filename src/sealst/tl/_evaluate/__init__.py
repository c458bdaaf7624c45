"""The comparison with the frozen encoder and simple baselines."""
