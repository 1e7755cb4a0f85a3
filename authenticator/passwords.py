"""Passwords: argon2id in threads, a policy, and generated ones."""

import asyncio
import secrets
import string

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

MIN_LENGTH = 8
MAX_LENGTH = 256
GENERATED_LENGTH = 16
PARALLEL = 4
"""Hashes computed at once; each takes 64 MiB."""

_UNAMBIGUOUS = "".join(sorted(set(string.ascii_letters + string.digits) - set("0O1lI")))
_ALPHANUMERIC = string.ascii_letters + string.digits
_TOO_COMMON = frozenset(
    {
        *("12345678", "123456789", "1234567890", "11111111", "00000000", "88888888"),
        *("password", "password1", "passw0rd", "letmein1", "welcome1", "changeme", "trustno1"),
        *("qwertyuiop", "qwerty123", "iloveyou", "sunshine", "princess", "football", "baseball"),
        *("superman", "administrator", "jupyterhub", "perijove"),
    }
)


def generate_password() -> str:
    """A random password without characters that look alike (about 93 bits)."""
    return "".join(secrets.choice(_UNAMBIGUOUS) for _ in range(GENERATED_LENGTH))


def generate_access_key() -> str:
    """``AKIA`` and 16 capital letters or digits, as Backend.AI writes them."""
    alphabet = string.ascii_uppercase + string.digits
    return "AKIA" + "".join(secrets.choice(alphabet) for _ in range(16))


def generate_secret_key() -> str:
    """40 letters or digits."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(40))


def password_error(password: str, username: str) -> str | None:
    """Why a password is refused, as a sentence that does not repeat it; None when it is good."""
    if len(password) < MIN_LENGTH:
        return f"it has {len(password)} characters, at least {MIN_LENGTH} are needed"
    if len(password) > MAX_LENGTH:
        return f"it has {len(password)} characters, at most {MAX_LENGTH} are allowed"
    if any(not character.isprintable() for character in password):
        return "it contains a control character"
    low = password.lower()
    if low in _TOO_COMMON or len(set(password)) < 3:
        return "it is one of the first that anybody would guess"
    if low == username.lower():
        return "it is the user name"
    return None


class Passwords:
    """Hashes and checks passwords without holding up the event loop."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turn = asyncio.Semaphore(PARALLEL)
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """The argon2id hash of ``password``, with its parameters and salt."""
        async with self._turn:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether ``password`` belongs to the ``stored`` hash.

        None (nobody, or a user without a password) takes as long as a wrong password and is never true.
        """
        if len(password) > MAX_LENGTH:
            password = ""
        if stored is None:
            if self._nobody is None:
                self._nobody = await self.hash(secrets.token_urlsafe())
            await self._verify(self._nobody, password)
            return False
        return await self._verify(stored, password)

    def is_outdated(self, stored: str) -> bool:
        """Whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    async def _verify(self, stored: str, password: str) -> bool:
        async with self._turn:
            try:
                return await asyncio.to_thread(self._hasher.verify, stored, password)
            except VerifyMismatchError:
                return False
            except (VerificationError, InvalidHashError) as error:
                raise ValueError("a stored password hash cannot be read") from error
