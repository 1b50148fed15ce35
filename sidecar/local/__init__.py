"""What the workers and the agent of one pod know together, and nobody else yet."""
