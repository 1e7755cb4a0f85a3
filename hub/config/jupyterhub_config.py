"""JupyterHub's configuration for a Perijove deployment: ``jupyterhub -f THIS_FILE``.

``PERIJOVE_STATE`` names the state folder. Settings of JupyterHub in the operator's own file
(``PERIJOVE_CONFIG``) are read last and win.
"""

from hub.config.hub import configure, operator_config

c = get_config()  # type: ignore[name-defined]  # noqa: F821 - JupyterHub provides it
path, config = operator_config()
configure(c, config)
if path:
    load_subconfig(path)  # type: ignore[name-defined]  # noqa: F821 - JupyterHub provides it
