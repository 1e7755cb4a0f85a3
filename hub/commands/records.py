"""Access to the manager's database for commands that run on its host."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from authenticator.identity import IdentityService
from hub.commands.base import CommandError, UsageError
from hub.config.deployment import Deployment
from hub.first_start import now
from store import schema
from store.database import Store, StoreError

T = TypeVar("T")


def run_on_database(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``; what the store cannot do becomes a ``CommandError``."""
    try:
        return asyncio.run(work)
    except StoreError as error:
        raise CommandError(str(error)) from error


def with_store(deployment: Deployment, work: Callable[[Store], Awaitable[T]]) -> T:
    """Run ``work`` on the opened database.

    Raises ``CommandError`` when there is none yet or its schema is not this release's.
    """

    async def run() -> T:
        store = Store(deployment.db_url)
        if store.path is not None and not store.path.exists():
            raise CommandError(
                f"there is no database {store.path}: start `perijove up` once, run"
                " `perijove db upgrade`, or name the state folder with --state-dir"
            )
        await asyncio.to_thread(schema.check, deployment.db_url)
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    return run_on_database(run())


def with_identity(deployment: Deployment, work: Callable[[IdentityService], Awaitable[T]]) -> T:
    """Run ``work`` with the identity service."""
    return with_store(deployment, lambda store: work(IdentityService(store, now)))


def ask_new_password(username: str) -> str:
    """A password typed twice on the terminal, or one line of standard input if that is no terminal."""
    if not sys.stdin.isatty():
        password = sys.stdin.readline().rstrip("\n")
        if not password:
            raise UsageError(
                "standard input has no password: give one on its first line, or use --generate"
            )
        return password
    password = getpass.getpass(f"New password of {username}: ")
    if getpass.getpass("The same again: ") != password:
        raise CommandError("the two passwords differ; nothing was changed")
    return password
