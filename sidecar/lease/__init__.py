"""Budgets in the pod: slices of them that the control plane leased, what was spent of them, and what became of it."""
