"""Mounts of remote images by the real command: same content, few requests, faults unnoticed, nothing secret shown."""

import hashlib
import json
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.fuse.mounting import diskfs, environment, mounted, run, sha256, status
from tests.helpers import CorpusRow, assert_same_bytes
from tests.servers.faulty import FAULTS, FaultyServer
from tests.servers.weed import SECRET_KEY, S3Server

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
LARGE = bool(os.environ.get("DISKFS_TEST_REMOTE_ALL"))
"""Read every image of the corpus and a gibibyte through faults, instead of a part of both."""
LARGEST_BY_DEFAULT = 24 * MIB
FAULTY_SIZE = GIB if LARGE else 96 * MIB


def read_directly(path: Path, offset: int, length: int) -> bytes:
    """Read past the kernel's page cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            count = os.preadv(descriptor, [buffer], offset)
            return buffer[:count]
    finally:
        os.close(descriptor)


# 1. The same content as locally


def readable(manifest: list[CorpusRow]) -> list[CorpusRow]:
    """Return the images that one mount shows as disk0, with the digest that other programs gave their content."""
    found = [
        row
        for row in manifest
        if row.sha256_content and row.has_data and not row.hostile and not row.is_member and row.virtual_size
    ]
    if LARGE:
        return found
    # The smallest of every format, and so of every way of reading.
    small = [row for row in found if row.size <= LARGEST_BY_DEFAULT and (row.virtual_size or 0) <= 16 * GIB]
    chosen = {row.format: row for row in sorted(small, key=lambda row: -(row.virtual_size or 0))}
    return list(chosen.values())


@pytest.mark.fuse
@pytest.mark.parametrize("way", ["s3", "http", "signed"])
def test_the_corpus_has_the_same_content_from_a_server(  # noqa: PLR0917 - fixtures
    aws: S3Server, web: FaultyServer, corpus: Path, manifest: list[CorpusRow], tmp_path: Path, way: str
) -> None:
    """Promise 1, acceptance 1: files that an image needs lie beside it, so whole folders are stored."""
    rows = readable(manifest)
    assert len(rows) >= 5
    different = []
    for row in rows:
        path = corpus / row.path
        if way == "signed" and needs_others(path, tmp_path / "alone"):
            continue
        for file in [path] if way == "signed" else beside(path):
            key = f"{way}/{Path(row.path).parent}/{file.name}"
            if way == "http":
                web.put(key, file)
            else:
                aws.put(key, file)
        key = f"{way}/{row.path}"
        locations = {"s3": f"s3://images/{key}", "http": f"{web.endpoint}/{quote(key)}", "signed": aws.signed_url(key)}
        with mounted(locations[way], tmp_path / "mnt") as mnt:
            if sha256(mnt / "disk0.raw") != row.sha256_content:
                different.append(row.path)
    assert different == []


def beside(path: Path) -> list[Path]:
    """Return an image and the files that it may need."""
    return [path, *(file for file in path.parent.iterdir() if file.is_file() and file.stat().st_size <= 64 * MIB)]


def needs_others(path: Path, folder: Path) -> bool:
    """Tell whether an image consists of several files: what is signed is one of them."""
    folder.mkdir(exist_ok=True)
    link = folder / path.name
    link.symlink_to(path)
    command = [sys.executable, "-m", "diskfs", "info", str(link)]
    result = subprocess.run(command, env=environment(), capture_output=True, check=False)
    link.unlink()
    return result.returncode != 0


# 2. Economy, counted at the server


@pytest.fixture(scope="module")
def large_appliance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream-optimized disk of 100 GiB in an appliance: four partitions with file systems, data all over."""
    folder = tmp_path_factory.mktemp("large")
    raw = folder / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(100 * GIB)
    run("sgdisk", "-n1:2048:+512M", "-t1:ef00", "-n2:0:+1G", "-n3:0:+80G", "-n4:0:0", raw)
    table = json.loads(run("sfdisk", "--json", raw))["partitiontable"]["partitions"]
    run("mkfs.vfat", "-F32", "-s8", f"--offset={table[0]['start']}", raw, table[0]["size"] // 2)
    for part in table[1:]:
        options = f"offset={part['start'] * 512},lazy_itable_init=1"
        run("mkfs.ext4", "-q", "-E", options, raw, f"{part['size'] // 2}k")
    with raw.open("r+b") as file:
        for number in range(2, 99):
            file.seek(number * GIB + 300 * MIB)
            file.write(os.urandom(2 * MIB))
    diskfs("convert", raw, folder / "vm.ova", "--quiet")
    raw.unlink()
    return folder / "vm.ova"


def test_opening_and_describing_a_large_appliance_takes_few_requests(web: FaultyServer, large_appliance: Path) -> None:
    """Acceptance 2: at most 16 requests and 8 MiB."""
    description = json.loads(diskfs("info", "--json", web.put("vm.ova", large_appliance)).stdout)
    parts = description["disks"][0]["partition_table"]["partitions"]
    assert [part["filesystem"] for part in parts] == ["vfat", "ext4", "ext4", "ext4"]
    assert description["disks"][0]["virtual_size"] == 100 * GIB
    assert len(web.log) <= 16
    assert web.sent <= 8 * MIB
    print(f"info: {len(web.log)} requests, {web.sent} bytes")


@pytest.mark.fuse
def test_one_block_of_a_cold_image_takes_at_most_three_requests(
    web: FaultyServer, large_appliance: Path, tmp_path: Path
) -> None:
    with mounted(web.put("vm.ova", large_appliance), tmp_path / "mnt") as mnt:
        for number in (50, 3, 77, 98, 20):
            before = len(web.log)
            assert read_directly(mnt / "disk0.raw", number * GIB + 301 * MIB, 4096) != bytes(4096)
            assert len(web.log) - before <= 3


@pytest.mark.fuse
def test_what_it_cost_is_told(web: FaultyServer, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    url = web.put("disk.raw", data)
    output = diskfs("info", url, "--verbose").stderr
    assert f"{len(web.log)} requests (0 of them repeated), {web.sent} bytes fetched" in output
    web.log.clear()
    web.sent = 0
    with mounted(url, tmp_path / "mnt") as mnt:
        assert json.loads((mnt / "disk0.json").read_text())["remote"]["requests"] == len(web.log)
        assert_same_bytes((mnt / "disk0.raw").read_bytes(), data)
        (found,) = [entry for entry in json.loads(diskfs("mounts", "--json").stdout) if entry["mountpoint"] == str(mnt)]
        assert found["remote"]["requests"] == len(web.log)
        assert found["remote"]["bytes_fetched"] == web.sent
        assert found["remote"]["retries"] == 0


# 4. Faults and outages


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize("way", ["http", "s3"])
def test_a_fifth_of_faulty_answers_goes_unnoticed(
    web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Promise 7, acceptance 4. Each request of a megabyte, in random order, so that many are made."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        for _ in range(FAULTY_SIZE // MIB):
            file.write(os.urandom(MIB))
    url = web.put("bucket/disk.raw", image)
    options = []
    if way == "s3":
        url = "s3://bucket/disk.raw"
        options = ["--endpoint-url", web.endpoint, "--no-sign-request", "--region", "us-east-1"]
    web.fail(0.2)
    slowest = 0.0
    pieces = list(range(0, FAULTY_SIZE, MIB))
    random.Random(2).shuffle(pieces)
    with mounted(url, tmp_path / "mnt", "--format", "raw", *options) as mnt, image.open("rb") as local:

        def read(offset: int) -> float:
            begun = time.monotonic()
            data = read_directly(mnt / "disk0.raw", offset, MIB)
            elapsed = time.monotonic() - begun
            assert_same_bytes(data, os.pread(local.fileno(), MIB, offset))
            return elapsed

        with ThreadPoolExecutor(12) as pool:
            slowest = max(pool.map(read, pieces))
        found = status(mnt)
    counts = web.counted()
    faults = sum(count for fault, count in counts.items() if fault)
    print(f"{way}: {counts}, {faults / len(web.log):.1%} faults, slowest read {slowest:.1f} s, {found}")
    assert found["errors"] == 0
    assert slowest <= 60
    assert faults >= 0.15 * len(web.log)
    assert set(counts) == {"", *FAULTS}


@pytest.mark.fuse
def test_an_outage_is_an_error_in_time_and_reading_goes_on_after_it(web: FaultyServer, tmp_path: Path) -> None:
    data = os.urandom(16 * MIB)
    with mounted(web.put("disk.raw", data), tmp_path / "mnt", "--timeout", "4") as mnt:
        file = mnt / "disk0.raw"
        assert_same_bytes(read_directly(file, 0, 4096), data[:4096])
        with web.outage():
            begun = time.monotonic()
            with pytest.raises(OSError, match="Input/output error"):
                read_directly(file, 8 * MIB, 4096)
            assert 2 <= time.monotonic() - begun <= 6
            # What is in memory needs no server.
            assert_same_bytes(read_directly(file, 4096, 4096), data[4096:8192])
        assert_same_bytes(read_directly(file, 8 * MIB, 4096), data[8 * MIB : 8 * MIB + 4096])
        # Shorter than the deadline: nobody notices.
        with ThreadPoolExecutor(1) as pool:
            with web.outage():
                reading = pool.submit(read_directly, file, 12 * MIB, 4096)
                time.sleep(2)
            assert_same_bytes(reading.result(), data[12 * MIB : 12 * MIB + 4096])
        assert status(mnt)["errors"] == 1


# 5. Changes and rotation


@pytest.mark.fuse
def test_a_changed_object_is_estale_on_the_mount(web: FaultyServer, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    with mounted(web.put("disk.raw", data), tmp_path / "mnt") as mnt:
        web.put("disk.raw", data[::-1])
        with pytest.raises(OSError, match="Stale file handle"):
            read_directly(mnt / "disk0.raw", 4 * MIB, 4096)
        assert "was changed since it was opened" in status(mnt)["last_error"]


# 7. Nothing secret


@pytest.mark.fuse
def test_no_secret_is_shown_anywhere(aws: S3Server, tmp_path: Path) -> None:
    """Promise 13: canaries in the secret key and in the signature of a URL, looked for wherever anything is written."""
    aws.put("machine.raw", os.urandom(4 * MIB))
    url = aws.signed_url("machine.raw")
    secrets = [SECRET_KEY, url.partition("Signature=")[2][:16], url.partition("?")[2][:24]]
    assert all(len(secret) >= 12 for secret in secrets)
    seen: dict[str, str] = {}

    def note(name: str, *arguments: object, expect: int = 0) -> None:
        result = diskfs(*arguments, "--verbose", expect=expect)
        seen[name] = result.stdout + result.stderr

    copy = tmp_path / "copy.raw"
    for location in (url, "s3://images/machine.raw"):
        note(f"info {len(seen)}", "info", "--json", location, "--cache", tmp_path / "cache")
        note(f"map {len(seen)}", "map", location)
        note(f"verify {len(seen)}", "verify", location)
        note(f"convert {len(seen)}", "convert", location, copy, "--force", "-O", "raw")
        note(f"compare {len(seen)}", "compare", location, copy)
        log = tmp_path / "log"
        with mounted(location, tmp_path / "mnt", "--verbose", "--log-file", log, "--cache", tmp_path / "cache") as mnt:
            pid = status(mnt)["pid"]
            seen[f"ps {len(seen)}"] = Path(f"/proc/{pid}/cmdline").read_bytes().decode() + run("ps", "-ef")
            seen[f"mounts {len(seen)}"] = Path("/proc/mounts").read_text() + diskfs("mounts", "--json").stdout
            read_directly(mnt / "disk0.raw", MIB, 4096)
            seen[f"json {len(seen)}"] = (mnt / "disk0.json").read_text() + json.dumps(status(mnt))
            seen[f"names {len(seen)}"] = " ".join(str(path) for path in mnt.rglob("*"))
        seen[f"log {len(seen)}"] = log.read_text()
    note("expired", "info", url.replace("Expires=3600", "Expires=1"), expect=1)
    note("missing", "info", aws.signed_url("missing.raw"), expect=1)
    note("unreachable", "info", url.replace(aws.endpoint, "http://127.0.0.1:1"), expect=1)
    note("no URL", "info", url.replace("127.0.0.1", "127.0.0.1:x"), expect=1)
    note("no format", "info", "--format", "vmdk", url, expect=1)
    for path in (tmp_path / "cache").rglob("*"):
        seen[f"cache {path}"] = str(path) + (path.read_bytes().decode("latin-1") if path.is_file() else "")
    assert [name for name, text in seen.items() for secret in secrets if secret in text] == []
    assert len(seen) > 20


def test_a_location_is_read_from_a_file_or_standard_input(web: FaultyServer, tmp_path: Path) -> None:
    url = web.put("disk.raw", os.urandom(MIB)) + "?signature=CANARY"
    (tmp_path / "location").write_text(url + "\n")
    assert json.loads(diskfs("info", "--json", f"@{tmp_path / 'location'}").stdout)["source"] == url.partition("?")[0]
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", "info", "--json", "@-"], input=url, text=True, capture_output=True, check=True,
        env=environment(),
    )  # fmt: skip
    assert json.loads(result.stdout)["source"] == url.partition("?")[0]
    assert "cannot be read" in diskfs("info", f"@{tmp_path / 'absent'}", expect=2).stderr


# 6. Requests that hang


@pytest.fixture
def hanging(web: FaultyServer) -> Iterator[FaultyServer]:
    """A server that does not answer for anything from 8 MiB up to 240 MiB."""
    web.hold = lambda request: request.range is not None and 8 * MIB <= request.range[0] < 240 * MIB
    yield web
    web.released.set()


@pytest.mark.fuse
@pytest.mark.root
def test_a_hundred_hung_fetches_stop_nobody_else(hanging: FaultyServer, tmp_path: Path) -> None:
    """Acceptance 6. In a name space of its own, where FUSE's control files are there as on any machine with systemd."""
    url = hanging.put("disk.raw", os.urandom(256 * MIB))
    script = 'mount -t fusectl none /sys/fs/fuse/connections && exec "$@"'
    child = Path(__file__).parent / "hung_reads.py"
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, str(child), url, str(tmp_path / "mnt")],
        env=environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    print(outcome)
    assert outcome["hung"] == 100
    assert outcome["p99"] < 0.05
    assert outcome["killed_reader_gone"] < 1
    assert outcome["unmounted"] < 5


def test_a_digest_of_a_partition_is_the_same(web: FaultyServer, tmp_path: Path) -> None:
    """`cat` of a part: the offset is counted from the partition, wherever it lies."""
    data = bytearray(os.urandom(4 * MIB))
    data[440:512] = bytes(70) + b"\x55\xaa"
    data[446:462] = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
    url = web.put("disk.raw", bytes(data))
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", "cat", url, "--partition", "1"],
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data[MIB : 3 * MIB]).digest()
