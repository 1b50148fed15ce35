"""The doors of a worker: transports, the loop that serves them, and what it answers."""
