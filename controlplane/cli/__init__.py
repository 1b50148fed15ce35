"""The `sidestep` command: a client of the gRPC APIs. It never opens the database. docs/cli.md is its manual."""
