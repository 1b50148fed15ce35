"""The control plane's own metrics (DESIGN section 12): `catalogue` says what there is, `collect` reads the parts of the program,
`meters` hands it to Prometheus and to OTLP by OpenTelemetry's SDK (ADR 0030).
"""
