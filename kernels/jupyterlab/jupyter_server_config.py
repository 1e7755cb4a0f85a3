"""Settings of every Jupyter server in a session: sockets instead of ports, the home folder as root."""

c = get_config()  # type: ignore[name-defined]  # noqa: F821 - given by traitlets

# Kernels talk over sockets in the session's own /tmp: no port of a kernel is ever open.
c.KernelManager.transport = "ipc"
# Files that JupyterLab asks about in the background must not be looked for above the home folder.
c.ContentsManager.allow_hidden = True
c.ServerApp.root_dir = "/home/work"
c.ServerApp.preferred_dir = "/home/work"
c.FileContentsManager.delete_to_trash = False
# Extensions cannot be installed into a read-only image; looking for them would ask a package index.
c.LabApp.extension_manager = "readonly"
# Slow to import, not used in a session of one person.
c.ServerApp.jpserver_extensions = {"notebook_shim": False, "jupyter_lsp": False}
