"""The ``perijove`` command: a traitlets application whose subcommands are imported when called."""

from __future__ import annotations

import sys

from hub.commands.base import Group, run_command


class PerijoveApp(Group):
    """Perijove: notebooks on a cluster's hardware, behind JupyterHub.

    `perijove up` runs a whole deployment on this machine."""

    name = "perijove"
    examples = """
    perijove up                        run everything here; Ctrl-C ends it
    perijove user add alice            add a user; the password is shown once
    perijove --generate-config         write perijove_config.py with all settings
    perijove --help-all                show all settings
    """
    subcommands = {
        "up": ("hub.commands.up.Up", "Run proxy, hub, manager and one agent on this machine."),
        "manager": ("hub.commands.manager.ManagerCommand", "Run the manager alone."),
        "agent": ("hub.commands.agent.AgentCommand", "Run the agent of this node alone."),
        "image": ("hub.commands.image.ImageGroup", "Build and list images for sessions."),
        "user": ("hub.commands.user.UserGroup", "Add, list and change users."),
        "session": (
            "hub.commands.session.SessionGroup",
            "Show the story of a session, and why it waits.",
        ),
        "domain": ("hub.commands.administration.DomainGroup", "Administer domains."),
        "project": ("hub.commands.administration.ProjectGroup", "Administer projects."),
        "policy": ("hub.commands.administration.PolicyGroup", "Administer policies of key pairs."),
        "user-policy": (
            "hub.commands.administration.UserPolicyGroup",
            "Administer resource policies of users.",
        ),
        "project-policy": (
            "hub.commands.administration.ProjectPolicyGroup",
            "Administer resource policies of projects.",
        ),
        "resource-group": (
            "hub.commands.administration.ResourceGroupGroup",
            "Administer resource groups and how they schedule.",
        ),
        "node": ("hub.commands.node.NodeGroup", "List, close, empty and remove nodes."),
        "audit": ("hub.commands.audit.Audit", "Compare the database with what really runs."),
        "preset": ("hub.commands.administration.PresetGroup", "Administer presets."),
        "registry": (
            "hub.commands.administration.RegistryGroup",
            "Administer registries of images.",
        ),
        "token": ("hub.commands.token.TokenGroup", "Create, list and revoke key pairs and tokens."),
        "db": ("hub.commands.db.DbGroup", "Upgrade the database or show its state."),
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point; ends the process with the command's exit status."""
    sys.exit(run_command(lambda: _launch(sys.argv[1:] if argv is None else argv)))


def _launch(argv: list[str]) -> None:
    app = PerijoveApp.instance()
    app.initialize(argv)
    app.start()


if __name__ == "__main__":
    main()
