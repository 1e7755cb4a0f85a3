"""What people import in a notebook; nothing of the server side."""
