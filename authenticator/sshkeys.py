"""The key that opens the SSH servers of a user's sessions. Its public part is kept, the private one never.

A private key that the platform made is in one answer and nowhere else.
"""

from __future__ import annotations

import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from sqlalchemy.ext.asyncio import AsyncSession

from authenticator.principals import Principal, Scope, require
from authenticator.problems import InvalidParameters
from authenticator.tables import UserRow
from store.database import Store

MAX_LENGTH = 8 * 1024
_LINE = re.compile(r"([a-z0-9@.-]+) ([A-Za-z0-9+/=]+)(?: ([^\x00-\x1f\x7f]*))?")
_SHOWN = 40


class SshKeyService:
    """A user's public key: show, replace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, actor: Principal) -> str:
        """The caller's public key as OpenSSH writes it; empty: none."""
        require(actor, Scope.SESSIONS_READ)

        async def work(db: AsyncSession) -> str:
            return (await db.get_one(UserRow, actor.user_id)).ssh_public_key or ""

        return await self._store.read(work)

    async def generate(self, actor: Principal) -> tuple[str, str]:
        """A new pair in the place of what there was: public and private key."""
        public, private = new_pair(f"{actor.username}@perijove")
        await self._set(actor, public)
        return public, private

    async def replace(self, actor: Principal, public: str, private: str | None) -> str:
        """The caller's own key; ``private`` only shows that the two belong together.

        Returns the public key. Raises ``InvalidParameters``.
        """
        line = checked(public)
        if private:
            _check_pair(line, private)
        await self._set(actor, line)
        return line

    async def _set(self, actor: Principal, public: str) -> None:
        require(actor, Scope.SESSIONS)

        async def work(db: AsyncSession) -> None:
            (await db.get_one(UserRow, actor.user_id)).ssh_public_key = public

        await self._store.write(work)


def new_pair(comment: str) -> tuple[str, str]:
    """Public and private key, as OpenSSH writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return f"{public.decode()} {comment}".strip(), private.decode()


def checked(public: str) -> str:
    """A public key as one line. Raises ``InvalidParameters``."""
    line = public.strip()
    found = _LINE.fullmatch(line)
    told = "one line as in an OpenSSH .pub file: type, key and comment"
    if found is None or len(line) > MAX_LENGTH:
        raise InvalidParameters({"pubkey": f"{public[:_SHOWN]!r}: {told}"})
    try:
        load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidParameters({"pubkey": f"{public[:_SHOWN]!r}: {told} ({error})"}) from error
    return line


def _check_pair(public: str, private: str) -> None:
    data = private.strip().encode() + b"\n"
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        own = load(data, None).public_key()
        line = own.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        # The error may quote the key.
        told = "it is no private key without a passphrase; leave it out"
        raise InvalidParameters({"privkey": told}) from error
    if line.split()[:2] != public.split()[:2]:
        raise InvalidParameters({"privkey": "it does not belong to pubkey"})
