"""The session API over HTTP: handlers translate, use cases decide."""
