"""What an agent dials with: a token it was given, or the credential that it got for a join token.

The credential lies in the agent's state folder (0600), with a fingerprint of the token that it was got for: a
token that was given anew counts more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

_FILE = "credential.json"


class Membership:
    """Chooses the secret to dial with, and keeps a credential."""

    def __init__(self, state_dir: Path, token: str) -> None:
        """Raises ``ValueError`` when there is neither token nor credential."""
        self._path, self._token = state_dir / _FILE, token
        self._credential = self._read()
        if not token and self._credential is None:
            raise ValueError("the agent has no token: set PERIJOVE_AGENT_TOKEN or token_file")

    @property
    def secret(self) -> str:
        """What to dial with now."""
        return self._credential or self._token

    def keep(self, credential: str) -> None:
        """Keep a credential: whole or not at all, and on disk before it is used."""
        body = json.dumps({"for": _fingerprint(self._token), "credential": credential})
        new = self._path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)
        self._credential = credential

    def _read(self) -> str | None:
        try:
            kept = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return None
        if self._token and kept.get("for") != _fingerprint(self._token):
            return None
        credential = kept.get("credential")
        return credential if isinstance(credential, str) else None


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]
