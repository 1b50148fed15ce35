"""The pure core: facts and policies in, a decision out. No clock, no I/O, no randomness."""
