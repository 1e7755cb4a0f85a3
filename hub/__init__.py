"""The front door: everything that speaks HTTP or a command line."""
