"""One revision a file, ``NNNN_what.py``; a published revision never changes."""
