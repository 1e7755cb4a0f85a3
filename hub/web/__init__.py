"""Pages of the hub: spawn form, dashboard; templates and static files."""
