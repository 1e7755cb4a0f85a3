"""Where an agent can be asked for its metrics, if that is set up: a port of its own."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from traitlets import Unicode, validate
from traitlets.config import Configurable

from spawner.addresses import address


class AgentMetricsEndpoint(Configurable):
    """The port at which Prometheus reads an agent's metrics."""

    bind = Unicode(
        help="""Address to listen on, HOST:PORT, e.g. 127.0.0.1:9105. Default: none, so that nobody can ask. Who
        opens it to others should set `token_file` or `client_ca`."""
    ).tag(config=True)
    token_file = Unicode(
        help="File with a token that must be shown as `Authorization: Bearer TOKEN`. Default: none."
    ).tag(config=True)
    certificate = Unicode(help="Certificate, with its chain, for TLS. Default: plain HTTP.").tag(
        config=True
    )
    key = Unicode(help="Its private key. Default: in that same file.").tag(config=True)
    client_ca = Unicode(
        help="Certificate authorities: who asks must show a certificate of one of them. Needs `certificate`."
    ).tag(config=True)

    @validate("bind")
    def _valid_bind(self, proposal: dict[str, Any]) -> str:
        if proposal["value"]:
            address(proposal["value"])
        return str(proposal["value"])

    @asynccontextmanager
    async def serve(self, render: Callable[[], bytes]) -> AsyncIterator[str]:
        """Serve ``/metrics`` meanwhile; gives the URL, empty when it is off. Raises ``ValueError``."""
        if not self.bind:
            yield ""
            return
        token, tls = self._token(), self._tls()

        async def metrics(request: web.Request) -> web.Response:
            shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if token and not hmac.compare_digest(shown, b"Bearer " + token):
                raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
            return web.Response(body=render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            host, port = address(self.bind)
            site = web.TCPSite(runner, host or None, port, ssl_context=tls)
            try:
                await site.start()
            except OSError as error:
                raise ValueError(f"cannot listen on {self.bind}: {error.strerror}") from error
            listening = runner.addresses[0]
            yield f"http{'s' if tls else ''}://{host or 'localhost'}:{listening[1]}/metrics"
        finally:
            await runner.cleanup()

    def _token(self) -> bytes:
        if not self.token_file:
            return b""
        try:
            token = Path(self.token_file).read_bytes().strip()
        except OSError as error:
            raise ValueError(f"token_file {self.token_file}: {error.strerror}") from error
        if not token:
            raise ValueError(f"token_file {self.token_file} is empty")
        return token

    def _tls(self) -> ssl.SSLContext | None:
        if not self.certificate:
            if self.client_ca:
                raise ValueError("client_ca is set, but there is no certificate")
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.certificate, self.key or None)
            if self.client_ca:
                context.load_verify_locations(cafile=self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(each for each in (self.certificate, self.key, self.client_ca) if each)
            raise ValueError(f"certificates {files}: {error.strerror or error}") from error
        return context
