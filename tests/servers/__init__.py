"""Real servers that tests talk to. Each listens on loopback, and ends with whoever started it."""
