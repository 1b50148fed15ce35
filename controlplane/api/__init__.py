"""The control plane's gRPC services."""
