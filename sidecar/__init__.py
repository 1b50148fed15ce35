"""The processes in each pod: supervisor, agent and workers."""
