"""The webhook that gives pods their sidecar, and its certificate."""
