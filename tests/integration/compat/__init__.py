"""Foreign clients against a whole platform."""
