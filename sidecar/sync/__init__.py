"""Following the control plane: one stream, applied to the store (DESIGN section 6)."""
