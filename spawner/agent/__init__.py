"""The daemon of a node and its engines. It never opens the database: it reports to the manager."""
