"""Engines: what runs a kernel on a node (Docker, local processes), behind one interface."""
