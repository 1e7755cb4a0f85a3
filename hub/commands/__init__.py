"""Subcommands of ``perijove``, one module each, imported only when they are called."""
