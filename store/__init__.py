"""The one database: declarative base, sessions, group commit and migrations. Tables live in their owners' rooms."""
