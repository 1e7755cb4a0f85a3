"""Settings of every notebook kernel: programs that ask for input reach the person at the notebook."""

c = get_config()  # type: ignore[name-defined]  # noqa: F821 - given by traitlets

c.InteractiveShellApp.extensions = ["perijove.asking"]
