"""The deployment: state folder, secrets and the ready-made JupyterHub configuration."""
