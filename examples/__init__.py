"""Runnable examples: the demo, a development stack, policies, a service that uses the client."""
