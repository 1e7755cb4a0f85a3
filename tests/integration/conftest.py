"""What integration tests share."""

import os
from collections.abc import Iterator

import pytest

from tests.integration.postgres_server import PostgresServer, find_binaries


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run; skipped loudly where none is installed, an error under CI."""
    binaries = find_binaries()
    if binaries is None:
        reason = "PostgreSQL is not installed: neither initdb nor /usr/lib/postgresql/*/bin"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = PostgresServer(binaries)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """An empty PostgreSQL database."""
    return postgres_server.new_database()
