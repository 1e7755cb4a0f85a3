"""Settings of every Python kernel in a session: programs that are started with `!` may ask for input."""

c = get_config()  # type: ignore[name-defined]  # noqa: F821 - given by traitlets

c.InteractiveShellApp.extra_extensions = ["perijove.programs"]
