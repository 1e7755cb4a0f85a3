"""Image recipes and the little that runs inside a container."""
