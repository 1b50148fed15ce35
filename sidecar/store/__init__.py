"""The sidecar's copy of the control plane's records in LMDB: one writer, many read views (DESIGN section 6)."""
