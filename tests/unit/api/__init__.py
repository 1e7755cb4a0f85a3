"""The HTTP API of the manager, over a socket."""
