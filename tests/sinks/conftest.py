"""The servers that tests of targets write to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.weed import S3Server
from tests.sources.conftest import aws, s3_server

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


@pytest.fixture
def proxy(aws: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy to the S3 server, which this process's environment leads to."""
    with FaultyProxy(aws.endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        yield found
