"""Files of sessions: lists, downloads and uploads in Backend.AI's shapes, streamed from and to the session."""

from __future__ import annotations

import json
import secrets
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPFile, HTTPInputError, parse_body_arguments
from tornado.iostream import StreamClosedError
from tornado.web import Finish

from authenticator.principals import Principal, Scope
from authenticator.problems import AgentUnavailable, InvalidParameters
from hub.api.endpoints import endpoint
from hub.api.handler import ApiHandler
from hub.api.parameters import param
from spawner.sessions.files import HOME, MOST_FILES, Transfer

MOST_UPLOADED = 16 * 1024 * 1024
"""Bytes of one upload, which the manager holds; more goes through folders or scp."""
TAR = "application/x-tar"
PARTS = "multipart/mixed"


@dataclass(frozen=True, slots=True)
class Listing:
    """Parameters of ``GET /session/{session}/files``."""

    path: str = param("Folder, relative to the home folder or below it.", default=HOME)
    owner_access_key: str | None = param("Access key of the owner.", default=None)


@dataclass(frozen=True, slots=True)
class Fetching:
    """Parameters of ``/session/{session}/download``."""

    files: list[str] = param(f"Files and folders, at most {MOST_FILES}.")
    owner_access_key: str | None = param("Access key of the owner.", default=None)


@dataclass(frozen=True, slots=True)
class FetchingOne:
    """Parameters of ``GET /session/{session}/download_single``."""

    file: str = param("File or folder.")
    owner_access_key: str | None = param("Access key of the owner.", default=None)


@dataclass(frozen=True, slots=True)
class Putting:
    """Parameters of ``POST /session/{session}/upload``; the files are the parts ``src`` of the body."""

    owner_access_key: str | None = param("Access key of the owner.", default=None)


class FileHandler(ApiHandler):
    """What they share."""

    async def owner(self, key: str | None) -> Principal:
        """Whose session it is: clients name the key in the query even where the rest is in the body."""
        return await self.acting_for(key or self.get_query_argument("owner_access_key", None))

    async def stream(self, transfer: Transfer) -> None:
        """Pass an archive on; the connection is cut where it does not come to its end."""
        try:
            async with aclosing(transfer.chunks()) as chunks:
                async for chunk in chunks:
                    self.write(chunk)
                    await self.flush()
        except StreamClosedError as error:
            raise Finish from error
        except AgentUnavailable as error:
            cast(HTTP1Connection, self.request.connection).close()
            raise Finish from error


class SessionListing(FileHandler):
    """What is in a folder."""

    paths = ("/session/{session}/files",)

    @endpoint("List a folder of a session", scope=Scope.SESSIONS, parameters=Listing)
    async def get(self, session: str, given: Listing) -> None:
        """Of the main container."""
        principal = await self.owner(given.owner_access_key)
        where, entries = await self.services.control.files.entries(principal, session, given.path)
        self.answer({"files": json.dumps(entries), "errors": "", "abspath": where})


class SessionDownload(FileHandler):
    """Files and folders as archives."""

    paths = ("/session/{session}/download",)

    @endpoint(
        "Download files of a session", scope=Scope.SESSIONS, parameters=Fetching, produces=PARTS
    )
    async def get(self, session: str, given: Fetching) -> None:
        """A ``tar`` archive of each, in parts."""
        await self._download(session, given)

    @endpoint(
        "Download files of a session, for newer clients",
        scope=Scope.SESSIONS,
        parameters=Fetching,
        produces=PARTS,
    )
    async def post(self, session: str, given: Fetching) -> None:
        """As ``GET``."""
        await self._download(session, given)

    async def _download(self, session: str, given: Fetching) -> None:
        principal = await self.owner(given.owner_access_key)
        transfers = await self.services.control.files.get(principal, session, given.files)
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: {TAR}\r\nContent-Encoding: identity\r\n\r\n"
        try:
            self.set_header("Content-Type", f'{PARTS}; boundary="{boundary}"')
            for transfer in transfers:
                self.write(head)
                await self.stream(transfer)
                self.write("\r\n")
            await self.finish(f"--{boundary}--\r\n")
        finally:
            for transfer in transfers:
                transfer.close()


class SessionDownloadOne(FileHandler):
    """One file or folder."""

    paths = ("/session/{session}/download_single",)

    @endpoint(
        "Download a file or folder of a session",
        scope=Scope.SESSIONS,
        parameters=FetchingOne,
        produces=TAR,
    )
    async def get(self, session: str, given: FetchingOne) -> None:
        """As a ``tar`` archive."""
        principal = await self.owner(given.owner_access_key)
        [transfer] = await self.services.control.files.get(principal, session, [given.file])
        try:
            self.set_header("Content-Type", TAR)
            await self.stream(transfer)
            await self.finish()
        finally:
            transfer.close()


class SessionUpload(FileHandler):
    """Files from outside."""

    paths = ("/session/{session}/upload",)
    max_body = MOST_UPLOADED

    async def prepare(self) -> None:
        """More than other requests may be sent, by who is known."""
        await super().prepare()
        cast(HTTP1Connection, self.request.connection).set_max_body_size(2 * MOST_UPLOADED)

    @endpoint(
        "Upload files into a session",
        scope=Scope.SESSIONS,
        parameters=Putting,
        status=204,
        query_only=True,
    )
    async def post(self, session: str, given: Putting) -> None:
        """Parts ``src`` of a form, each with its path below the home folder, percent-encoded, as file name."""
        principal = await self.owner(given.owner_access_key)
        files = {unquote(each["filename"]): each["body"] for each in self._parts()}
        if not 1 <= len(files) <= MOST_FILES:
            raise InvalidParameters({"src": f"give 1 to {MOST_FILES} files"})
        await self.services.control.files.put(principal, session, files)
        self.answer_nothing()

    def _parts(self) -> list[HTTPFile]:
        kind = self.request.headers.get("Content-Type", "")
        found: dict[str, list[HTTPFile]] = {}
        try:
            if not kind.startswith("multipart/form-data"):
                raise HTTPInputError("give multipart/form-data")
            parse_body_arguments(kind, self.body(), {}, found)
        except HTTPInputError as error:
            raise InvalidParameters({"src": str(error)}, "Malformed body") from None
        return found.get("src", [])


HANDLERS = (SessionListing, SessionDownload, SessionDownloadOne, SessionUpload)
