"""Plug-ins that find devices, say which slots they offer and how an allocation reaches a kernel."""
