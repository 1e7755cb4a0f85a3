"""Storage folders (vfolders): volumes over fsspec, ownership, quotas, confined paths."""
