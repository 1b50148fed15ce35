"""What goes up to the control plane besides acknowledgements: where the journal stands."""
