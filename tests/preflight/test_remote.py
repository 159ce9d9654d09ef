"""A disk of 20 GiB in S3, each request of which takes 20 ms: preflight reads next to nothing of it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuse.mounting import environment
from tests.preflight.checking import run
from tests.preflight.test_general import DEBIAN
from tests.servers.faulty import FaultyServer

GIB = 1 << 30
SIZE = 20 * GIB
LATENCY = 0.02
LIMIT = 30.0
"""Seconds that the issue allows; this machine may be busy, so the test leaves it that much."""


@pytest.fixture(scope="session")
def large_debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse raw disk: a GPT, and an ext4 of 19 GiB with a small Debian and 1,000 other files."""
    folder = tmp_path_factory.mktemp("large")
    tree = folder / "tree"
    for name, data in DEBIAN.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data.encode() if isinstance(data, str) else data)
    (tree / "boot/initrd.img-6.1.0-18-amd64").write_bytes(b"070701" + os.urandom(4 << 20))
    for number in range(10):
        (tree / f"usr/share/doc/{number}").mkdir(parents=True)
        for file in range(100):
            (tree / f"usr/share/doc/{number}/{file}").write_bytes(b"text")
    disk = folder / "debian.raw"
    with disk.open("wb") as whole:
        whole.truncate(SIZE)
    run("sfdisk", "--quiet", "--no-reread", disk, stdin="label: gpt\nstart=2048,size=19GiB,type=L\n")
    run("mkfs.ext4", "-q", "-F", "-d", tree, "-E", f"offset={1 << 20}", disk, "19G")
    return disk


def preflight(endpoint: str, *options: str) -> tuple[dict[str, object], int, int, float]:
    """Run the command; return the document, requests and bytes as --verbose prints them, and the seconds."""
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", "preflight", "s3://images/debian.raw", "--endpoint-url", endpoint,
         "--no-sign-request", "--json", "--verbose", *options],
        capture_output=True, text=True, check=False, env={**environment(), "AWS_DEFAULT_REGION": "us-east-1"},
    )  # fmt: skip
    seconds = time.monotonic() - started
    assert result.returncode in {0, 3}, result.stderr
    counts = re.search(r"(\d+) requests .*?, (\d+) bytes fetched", result.stderr)
    assert counts is not None, result.stderr
    return json.loads(result.stdout), int(counts[1]), int(counts[2]), seconds


def test_a_large_disk_in_s3_is_judged_from_a_few_megabytes(large_debian: Path) -> None:
    with FaultyServer() as server:
        server.latency = LATENCY
        server.put("images/debian.raw", large_debian)
        document, requests, fetched, seconds = preflight(server.endpoint)
        sent = server.sent
    print(f"{requests} requests, {fetched} bytes of {SIZE} ({fetched / SIZE:.4%}), {seconds:.1f} s")
    assert document["facts"]["os"] == "Debian GNU/Linux 12"  # type: ignore[index]  # the document's schema
    assert document["facts"]["kernel"] == "6.1.0-18-amd64"  # type: ignore[index]
    assert "UserBucket={S3Bucket=images,S3Key=debian.raw}" in str(document["command"])
    assert fetched < SIZE // 100
    assert sent < SIZE // 100
    assert seconds < LIMIT
    assert requests * LATENCY < LIMIT / 2
