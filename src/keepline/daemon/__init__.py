"""The daemon: parts that start, serve, drain and restart alone, and the local socket that bots talk to."""
