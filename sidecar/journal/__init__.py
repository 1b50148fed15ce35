"""The journal: every decision is appended here before it is answered, and stays until the collector has it."""
