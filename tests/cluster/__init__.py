"""Several hosts: network namespaces, each with its own Docker engine and agent, and one manager."""
