"""Volumes: where the bytes of vfolders live. Entry points ``perijove.volumes``."""
