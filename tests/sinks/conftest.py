"""The servers that tests of targets write to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.weed import S3Server
from tests.sources.conftest import aws, s3_server, use_clients_of

__all__ = ["aws", "s3_server"]


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's uploads are noted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "diskfs" / "uploads"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts as small as servers allow: 5 MiB."""
    monkeypatch.setattr("diskfs.sinks.s3_parts.SMALLEST", 5 << 20)
    return 5 << 20


@pytest.fixture(scope="session")
def shared_proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    """A proxy to the S3 server, for the whole run: clients for it are made once."""
    with FaultyProxy(s3_server.endpoint) as found:
        yield found


@pytest.fixture
def proxy(aws: S3Server, shared_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The proxy, which this process's environment leads to."""
    shared_proxy.reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL", shared_proxy.endpoint)
    use_clients_of(shared_proxy.endpoint, monkeypatch)
    yield shared_proxy
    shared_proxy.reset()
