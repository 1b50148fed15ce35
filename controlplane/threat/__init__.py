"""What the control plane concludes from all sidecars' reports together."""
