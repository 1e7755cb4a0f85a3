"""``perijove user``: the people of this deployment. Works on the database, on the manager's host."""

from __future__ import annotations

from typing import ClassVar

from traitlets import Bool, Unicode

from authenticator.principals import Role
from hub.commands.administration import RecordRemove, RecordSet, RecordShow
from hub.commands.base import Command, Group, say, table
from hub.commands.records import ask_new_password, with_identity


class UserAdd(Command):
    """Add a user with a generated password, which is shown once.

    With --ask the password is asked for on the terminal (or read from standard input)."""

    arguments = ("NAME",)
    email = Unicode("", help="E-mail address; default NAME@localhost.").tag(config=True)
    full_name = Unicode("", help="The person's name.").tag(config=True)
    admin = Bool(False, help="Make the user an administrator.").tag(config=True)
    ask = Bool(False, help="Ask for the password.").tag(config=True)
    external = Bool(False, help="No password: the user logs in elsewhere.").tag(config=True)

    def act(self, *arguments: str) -> None:
        """Create the row, show what is shown once."""
        (username,) = arguments
        password = ask_new_password(username) if self.ask else None
        made = with_identity(
            self.deployment(),
            lambda identity: identity.create_user(
                username,
                password=password,
                with_password=not self.external,
                email=self.email or None,
                full_name=self.full_name,
                role=Role.SUPERADMIN if self.admin else Role.USER,
            ),
        )
        say(f"Added {made.user.username} <{made.user.email}> ({made.user.role})")
        if made.password is not None:
            say(f"Password, shown only now: {made.password}")


class UserList(Command):
    """List the users."""

    def act(self, *arguments: str) -> None:
        """One line each."""
        users = with_identity(self.deployment(), lambda identity: identity.list_users())
        rows = [
            (user.username, user.email, user.role, user.status, f"{user.created_at:%Y-%m-%d}")
            for user in users
        ]
        say(table(("NAME", "EMAIL", "ROLE", "STATUS", "CREATED"), rows))


class UserPassword(Command):
    """Set a user's password: asked for on the terminal, or read from standard input.

    With --generate a new one is made and shown once."""

    arguments = ("NAME",)
    generate = Bool(False, help="Generate the password and show it once.").tag(config=True)

    def act(self, *arguments: str) -> None:
        """Ask or generate, then store the hash."""
        (username,) = arguments
        deployment = self.deployment()
        with_identity(deployment, lambda identity: identity.user_by_name(username))
        chosen = None if self.generate else ask_new_password(username)
        generated = with_identity(
            deployment, lambda identity: identity.set_password(username, chosen)
        )
        say(f"The password of {username} was changed")
        if generated is not None:
            say(f"Password, shown only now: {generated}")


class UserDisable(Command):
    """Disable a user: no log-in and no API call any more.

    Sessions that run go on; an administrator ends them."""

    arguments = ("NAME",)
    status = "inactive"

    def act(self, *arguments: str) -> None:
        """Set the status."""
        (username,) = arguments
        user = with_identity(
            self.deployment(), lambda identity: identity.set_status(username, self.status)
        )
        say(f"{user.username} is {user.status} now")


class UserEnable(UserDisable):
    """Enable a disabled user."""

    status = "active"


class UserAdmin(Command):
    """Make a user an administrator; with --revoke, an ordinary user again."""

    arguments = ("NAME",)
    revoke = Bool(False, help="Take the administrator's rights away.").tag(config=True)

    def act(self, *arguments: str) -> None:
        """Set the role."""
        (username,) = arguments
        role = Role.USER if self.revoke else Role.SUPERADMIN
        user = with_identity(self.deployment(), lambda identity: identity.set_role(username, role))
        say(f"{user.username} has the role {user.role} now; in the hub from the next log-in on")


class UserShow(RecordShow):
    """Show a user with all fields: who it is, limits, policies."""

    plural = "users"


class UserSet(RecordSet):
    """Change fields of a user, such as limits and policies: KEY=VALUE..."""

    plural = "users"


class UserRemove(RecordRemove):
    """Delete a user who never had a session or folder; others can be disabled."""

    plural = "users"


class UserGroup(Group):
    """Add, list and change users. Works on the manager's host."""

    name = "perijove user"
    commands: ClassVar = {
        "add": UserAdd,
        "list": UserList,
        "show": UserShow,
        "set": UserSet,
        "remove": UserRemove,
        "password": UserPassword,
        "disable": UserDisable,
        "enable": UserEnable,
        "admin": UserAdmin,
    }
