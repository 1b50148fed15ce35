"""The shared page as metrics, for Prometheus to fetch and for a collector to be sent (DESIGN section 12).

`catalogue` says what there is, `collect` reads the page, `text` writes what Prometheus reads; all three need the standard
library only, because the supervisor serves them. `otlp` and `push` belong to the agent.
"""
