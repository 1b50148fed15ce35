"""Abuse guards and rate limits of a worker: what it remembers of the requests it saw, and what that says of the next one."""
