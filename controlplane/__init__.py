"""The control plane: owns the records, and keeps every sidecar's copy of them current."""
