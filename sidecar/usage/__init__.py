"""What a worker counts of its decisions, for the control plane."""
