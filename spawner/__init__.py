"""The engine: from "please" to a running container."""
