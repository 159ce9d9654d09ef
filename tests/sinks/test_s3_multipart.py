"""Images written to a real S3 server: what is there is right and complete, or nothing is."""

import base64
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from diskfs.convert.appliance import convert_appliance
from diskfs.convert.job import Job, Summary, convert_disk
from diskfs.disks.opening import open_source
from diskfs.errors import OutOfSpace, SinkError
from diskfs.sinks.s3_multipart import S3Sink
from diskfs.sources.locations import RemoteOptions
from diskfs.sources.s3 import way_of
from diskfs_formats.registry import writable_variants
from diskfs_formats.writer import Progress, WriteOptions, no_progress
from tests.convert.commands import diskfs
from tests.fuse.mounting import environment, run
from tests.helpers import assert_same_bytes
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.weed import S3Server

MIB = 1 << 20
VARIANTS = [(name, variant) for name in ("raw", "vmdk", "vhd", "vhdx") for variant in writable_variants(name)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of 11 MiB and a sector: 6 MiB that do not compress, a hole, and data at the end."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.write(random.Random(4).randbytes(6 * MIB))
        file.seek(11 * MIB)
        file.write(b"\x55" * 512)
    return path


def remote(deadline: float = 60.0) -> RemoteOptions:
    """Return how the server, or its proxy, is reached. Clients are kept by what the options say."""
    return RemoteOptions(endpoint_url=os.environ["AWS_ENDPOINT_URL"], deadline=deadline)


def phase(_title: str, _total: int) -> AbstractContextManager[Progress]:
    """Show no progress."""
    return nullcontext(no_progress)


def convert(source: Path | str, target: str, variant: str = "", **how: Any) -> Summary:
    """Convert in this process."""
    format_name = how.pop("format", None) or target.rpartition(".")[2]
    options = WriteOptions(variant=variant, file_name=target.rpartition("/")[2], reproducible=True)
    job = Job(target, format_name, options, remote=remote(), **how)
    with open_source(str(source), remote=remote()) as opened:
        image = opened.disk(0).image
        return convert_appliance([image], job, phase) if format_name == "ova" else convert_disk(image, job, phase)


def sink(target: str, **how: Any) -> S3Sink:
    """Open a target."""
    return S3Sink(target, way_of(remote(), 2.0), **{"deadline": 2.0, **how})


def publish(target: S3Sink, content: bytes) -> None:
    """Write all of an object."""
    target.write(content)
    target.commit()


def unfinished(server: S3Server, key: str = "") -> list[str]:
    """Return the keys of multipart uploads that were begun and neither completed nor aborted."""
    return [
        upload["Key"] for upload in server.client.list_multipart_uploads(Bucket="images", Prefix=key).get("Uploads", [])
    ]


def keys(server: S3Server, prefix: str) -> list[str]:
    """Return the names of the objects that are visible."""
    return [found["Key"] for found in server.client.list_objects_v2(Bucket="images", Prefix=prefix).get("Contents", [])]


def download(server: S3Server, key: str, path: Path) -> Path:
    """Read an object by boto3 alone."""
    path.write_bytes(server.client.get_object(Bucket="images", Key=key)["Body"].read())
    return path


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_is_what_qemu_reads_as_the_disk(
    *, name: str, variant: str, raw: Path, aws: S3Server, small_parts: int, tmp_path: Path
) -> None:
    key = f"{variant}-all.{name}"
    summary = convert(raw, f"s3://images/all/{key}", variant)
    for file in keys(aws, "all/"):
        if file.startswith(f"all/{variant}-all"):
            download(aws, file, tmp_path / file.rpartition("/")[2])
    qemu_name = {"vhd": "vpc"}.get(name, name)
    # A VHD is as large as its geometry, to qemu.
    run("qemu-img", "compare", "-q", "-f", qemu_name, "-F", "raw", tmp_path / key, raw)
    assert not unfinished(aws, "all/")
    head = aws.client.head_object(Bucket="images", Key=f"all/{key}")
    assert summary.upload is not None
    assert head["ContentLength"] <= summary.upload["bytes_sent"] == summary.file_size
    if head["ContentLength"] > small_parts:
        assert head["ETag"].endswith(f'-{-(-head["ContentLength"] // small_parts)}"')


def test_an_appliance_goes_up_without_a_temporary_file(
    raw: Path, aws: S3Server, small_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    convert(raw, "s3://images/appliance.ova", verify=True)
    ova = download(aws, "appliance.ova", tmp_path / "a.ova")
    (tmp_path / "x").mkdir()
    run("tar", "-C", tmp_path / "x", "-xf", ova)
    members = run("tar", "-tf", ova).split()
    assert members == ["appliance.ovf", "appliance.mf", "appliance-disk1.vmdk"]
    run("qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", tmp_path / "x" / members[2], raw)
    local = tmp_path / "appliance.ova"
    convert(raw, str(local))
    assert_same_bytes(ova.read_bytes(), local.read_bytes())


def test_an_appliance_of_several_disks_goes_up_too(
    corpus: Path, aws: S3Server, small_parts: int, tmp_path: Path
) -> None:
    source = corpus / "appliances/two-disks.ova"
    diskfs("convert", source, "s3://images/two.ova", "--verify")
    ova = download(aws, "two.ova", tmp_path / "two.ova")
    for number in (0, 1):
        diskfs("compare", "--quiet", source, ova, "--disk-a", number, "--disk-b", number)


def test_what_fits_into_a_part_goes_by_one_request(
    raw: Path, proxy: FaultyProxy, aws: S3Server, tmp_path: Path
) -> None:
    small = tmp_path / "small.raw"
    small.write_bytes(raw.read_bytes()[:MIB])
    summary = convert(small, "s3://images/small.raw")
    assert summary.upload == {"requests": 4, "retries": 0, "bytes_sent": MIB}
    assert proxy.operations()["PutObject"] == 1
    assert_same_bytes(download(aws, "small.raw", tmp_path / "x").read_bytes(), small.read_bytes())
    with contextlib.closing(open_source("s3://images/small.raw")) as opened:
        assert opened.disk(0).image.size == MIB


@pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 10 * MIB])
def test_both_sides_of_a_parts_size(size: int, aws: S3Server, small_parts: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    target = sink(f"s3://images/size-{size}")
    for at in range(0, size, 3 * MIB):
        target.write_all([content[at : at + 1], memoryview(content)[at + 1 : at + 3 * MIB]])
    target.commit()
    target.abort()
    assert_same_bytes(download(aws, f"size-{size}", tmp_path / "x").read_bytes(), content)
    assert not unfinished(aws, f"size-{size}")


def test_the_servers_own_checksum_is_that_of_the_bytes(raw: Path, aws: S3Server, small_parts: int) -> None:
    convert(raw, "s3://images/sum.raw")
    head = aws.client.head_object(Bucket="images", Key="sum.raw", ChecksumMode="ENABLED")
    content = raw.read_bytes()
    parts = [content[at : at + small_parts] for at in range(0, len(content), small_parts)]
    # S3 User Guide, "Composite checksums": the checksum of the parts' checksums, one after the other.
    sums = b"".join(google_crc32c.value(part).to_bytes(4, "big") for part in parts)
    whole = base64.b64encode(google_crc32c.value(sums).to_bytes(4, "big")).decode()
    assert head["ChecksumCRC32C"] == f"{whole}-{len(parts)}"


def test_bytes_that_change_on_the_way_are_refused_by_the_server_and_sent_again(
    raw: Path, proxy: FaultyProxy, aws: S3Server, small_parts: int, tmp_path: Path
) -> None:
    left = ["garbled", "garbled"]
    proxy.choose = lambda operation: left.pop() if operation == "UploadPart" and left else None
    summary = convert(raw, "s3://images/garbled.raw")
    assert summary.upload is not None
    assert summary.upload["retries"] == 2
    assert_same_bytes(download(aws, "garbled.raw", tmp_path / "x").read_bytes(), raw.read_bytes())


def test_nothing_is_replaced_without_force(raw: Path, aws: S3Server, small_parts: int) -> None:
    aws.put("old.raw", b"old")
    with pytest.raises(SinkError, match="exists already; use --force"):
        convert(raw, "s3://images/old.raw")
    assert not unfinished(aws, "old.raw")
    convert(raw, "s3://images/old.raw", replace=True)
    assert aws.client.head_object(Bucket="images", Key="old.raw")["ContentLength"] == raw.stat().st_size


@pytest.mark.parametrize("size", [MIB, 6 * MIB])
def test_an_object_that_appears_meanwhile_is_not_replaced(
    size: int, proxy: FaultyProxy, aws: S3Server, small_parts: int
) -> None:
    key = f"appears-{size}"
    target = sink(f"s3://images/{key}")
    target.write(bytes(size - 1) + b"1")
    target.flush()
    # After the last look, before the request that publishes.
    proxy.choose = lambda operation: (
        aws.put(key, b"somebody's") and None if operation in {"PutObject", "CompleteMultipartUpload"} else None
    )
    with pytest.raises(SinkError, match="exists already"):
        target.commit()
    proxy.choose = lambda operation: None
    target.abort()
    assert aws.client.get_object(Bucket="images", Key=key)["Body"].read() == b"somebody's"
    assert not unfinished(aws, key)


def test_the_own_source_is_not_replaced(raw: Path, aws: S3Server) -> None:
    location = aws.put("own.raw", raw)
    for source in (location, aws.signed_url("own.raw")):
        with pytest.raises(SinkError, match="which is being read; choose another target") as caught:
            convert(source, location, replace=True)
        assert "X-Amz" not in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("CreateMultipartUpload", "lost"),
        ("CreateMultipartUpload", "cut-answer"),
        ("UploadPart", "500-after"),
        ("UploadPart", "cut"),
        ("CompleteMultipartUpload", "lost"),
        ("CompleteMultipartUpload", "cut-answer"),
        ("PutObject", "lost"),
        ("PutObject", "500-after"),
    ],
)
def test_a_lost_answer_makes_neither_two_objects_nor_an_error(
    *,
    operation: str,
    fault: str,
    proxy: FaultyProxy,
    aws: S3Server,
    small_parts: int,
    tmp_path: Path,
    state_folder: Path,
) -> None:
    content = os.urandom((2 if operation == "PutObject" else 6) * MIB)
    key = f"lost-{operation}-{fault}"
    left = [fault]
    proxy.choose = lambda found: left.pop() if found == operation and left else None
    target = sink(f"s3://images/{key}", deadline=10.0)
    target.write(content)
    target.commit()
    assert not left
    assert_same_bytes(download(aws, key, tmp_path / "x").read_bytes(), content)
    assert not unfinished(aws, key)
    assert not list(state_folder.glob("*"))


def test_a_fifth_of_all_answers_is_faulty(
    raw: Path, proxy: FaultyProxy, aws: S3Server, small_parts: int, tmp_path: Path
) -> None:
    proxy.fail(0.2)
    for number in range(4):
        convert(raw, f"s3://images/faulty-{number}.raw")
        assert_same_bytes(download(aws, f"faulty-{number}.raw", tmp_path / "x").read_bytes(), raw.read_bytes())
    assert not unfinished(aws, "faulty-")
    counted = proxy.counted()
    assert sum(counted.values()) - counted[""] >= 0.15 * sum(counted.values())


@pytest.mark.expects_log("could not be removed from the server")
def test_an_outage_is_an_error_in_time_and_the_next_run_cleans_up(
    proxy: FaultyProxy, aws: S3Server, small_parts: int, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskfs.sinks.s3_cleaning.PATIENCE", 1.0)
    target = sink("s3://images/outage")
    target.write(os.urandom(6 * MIB))
    target.flush()
    assert unfinished(aws, "outage") == ["outage"]
    proxy.down = True
    begin = time.monotonic()
    with pytest.raises(SinkError, match=r"completing the upload: .*given up after 2 s|asking whether it exists"):
        target.commit()
    target.abort()
    assert time.monotonic() - begin < 30
    proxy.down = False
    assert len(list(state_folder.iterdir())) == 1
    sink("s3://images/another").abort()
    assert not unfinished(aws, "outage")
    assert not list(state_folder.iterdir())


def test_a_network_that_pauses_is_no_error(proxy: FaultyProxy, aws: S3Server) -> None:
    proxy.pause_in_body = 7.0
    target = sink("s3://images/paused")
    target.write(os.urandom(4 * MIB))
    target.commit()
    assert target.counts.retries == 0


@pytest.mark.parametrize(
    ("operation", "status", "code", "error", "message"),
    [
        (
            "PutObject",
            403,
            "AccessDenied",
            SinkError,
            r"writing the object: it is denied \(AccessDenied\); s3:PutObject",
        ),
        ("PutObject", 404, "NoSuchBucket", SinkError, "there is no such bucket"),
        ("PutObject", 400, "EntityTooLarge", SinkError, "larger than the server takes"),
        ("PutObject", 507, "InsufficientStorage", OutOfSpace, "the server has no room"),
        ("PutObject", 409, "ConditionalRequestConflict", SinkError, "somebody else wrote"),
        ("PutObject", 301, "PermanentRedirect", SinkError, "another region; use --region|cannot"),
        ("any", 400, "ExpiredToken", SinkError, "have expired"),
        ("PutObject", 403, "InvalidAccessKeyId", SinkError, "not accepted"),
        ("PutObject", 500, "InternalError", SinkError, "500 InternalError; given up after 2 s"),
        ("PutObject", 418, "Teapot", SinkError, "the server answered 418 Teapot"),
        ("CreateMultipartUpload", 403, "AccessDenied", SinkError, "beginning the upload: it is denied"),
        ("UploadPart", 404, "NoSuchUpload", SinkError, r"part \d: the server has the upload no more"),
        ("UploadPart", 400, "EntityTooLarge", SinkError, r"part \d: the object is larger"),
        ("CompleteMultipartUpload", 400, "InvalidPart", SinkError, "400 InvalidPart"),
    ],
)
def test_what_the_server_refuses_is_said_in_one_line(
    *, operation: str, status: int, code: str, error: type[Exception], message: str,
    proxy: FaultyProxy, aws: S3Server, small_parts: int,
) -> None:  # fmt: skip
    key = f"refused-{operation}-{code}"
    proxy.denied = lambda found: (status, code) if operation in {found, "any"} else None
    target = sink(f"s3://images/{key}")
    content = bytes(MIB) if operation in {"PutObject", "any"} else b"1" * 6 * MIB
    with pytest.raises(error, match=message) as caught:
        publish(target, content)
    target.abort()
    assert "\n" not in str(caught.value)
    assert "CANARY" not in str(caught.value)
    assert str(caught.value).startswith(f"s3://images/{key}: ")
    assert not unfinished(aws, key)
    assert not keys(aws, key)


@pytest.mark.parametrize("denied", ["HeadObject", "ListMultipartUploads", "ListParts"])
def test_rights_beyond_writing_are_not_needed(denied: str, proxy: FaultyProxy, aws: S3Server, small_parts: int) -> None:
    proxy.denied = lambda operation: (403, "AccessDenied") if operation == denied else None
    for key in (f"rights-{denied}", f"rights-{denied}-abort"):
        target = sink(f"s3://images/{key}")
        target.write(b"1" * 6 * MIB)
        target.flush()
        target.abort() if key.endswith("abort") else target.commit()
        assert keys(aws, key) == ([] if key.endswith("abort") else [key])
        assert not unfinished(aws, key)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("s3://images/", "names no object"),
        ("s3://images/folder/", "names a prefix"),
        ("s3://images/x?versionId=1", "leave .versionId= out"),
        ("https://example.org/x?token=CANARY", "nothing can be written there"),
    ],
)
def test_what_cannot_be_a_target_is_said(target: str, message: str, raw: Path, aws: S3Server) -> None:
    with pytest.raises(SinkError, match=message) as caught:
        convert(raw, target, format="raw")
    assert "CANARY" not in str(caught.value)


def test_a_difference_that_verifying_finds_removes_the_object(
    raw: Path, aws: S3Server, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = S3Sink.commit

    def swapped(target: S3Sink) -> None:
        commit(target)
        mark = aws.client.head_object(Bucket="images", Key="differs.raw")["Metadata"]
        aws.client.put_object(Bucket="images", Key="differs.raw", Body=bytes(raw.stat().st_size), Metadata=mark)

    monkeypatch.setattr(S3Sink, "commit", swapped)
    with pytest.raises(Exception, match=r"differs from .* at offset 0x0; the object was removed"):
        convert(raw, "s3://images/differs.raw", verify=True)
    assert not keys(aws, "differs.raw")


def test_uploads_of_other_programs_are_left_alone(
    raw: Path, aws: S3Server, small_parts: int, state_folder: Path
) -> None:
    other = aws.client.create_multipart_upload(Bucket="images", Key="shared.raw")["UploadId"]
    convert(raw, "s3://images/shared.raw")
    target = sink("s3://images/shared.raw", replace=True)
    target.write(b"1" * 6 * MIB)
    target.abort()
    assert unfinished(aws, "shared.raw") == ["shared.raw"]
    aws.client.abort_multipart_upload(Bucket="images", Key="shared.raw", UploadId=other)


def test_the_upload_of_a_living_run_is_left_alone(aws: S3Server, small_parts: int) -> None:
    living = sink("s3://images/living")
    living.write(b"1" * 6 * MIB)
    living.flush()
    sink("s3://images/living").abort()
    assert unfinished(aws, "living") == ["living"]
    living.commit()
    assert keys(aws, "living") == ["living"]


@contextlib.contextmanager
def started(source: Path, target: str, *options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the command; it is ended on leaving."""
    command = [sys.executable, "-m", "diskfs", "convert", str(source), target, *map(str, options)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of two parts and a bit."""
    path = tmp_path_factory.mktemp("large") / "large.raw"
    path.write_bytes(random.Random(8).randbytes(17 * MIB))
    return path


@pytest.mark.parametrize(
    ("number", "operation"),
    [
        (signal.SIGINT, "CreateMultipartUpload"),
        (signal.SIGTERM, "UploadPart"),
        (signal.SIGKILL, "CreateMultipartUpload"),
        (signal.SIGKILL, "UploadPart"),
    ],
)
def test_an_interrupted_upload_leaves_nothing(
    *, number: signal.Signals, operation: str, large: Path, proxy: FaultyProxy, aws: S3Server, state_folder: Path
) -> None:
    key = f"interrupted-{operation}-{number}.raw"
    # The server has done it, and the client does not know.
    proxy.hold_answer = lambda found: found == operation
    with started(large, f"s3://images/{key}") as process:
        assert proxy.held.wait(60)
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait(30)
            proxy.released.set()
            time.sleep(0.2)
            assert unfinished(aws, key) == [key]
            assert len(list(state_folder.iterdir())) == 1
            proxy.hold_answer = lambda found: False
            sink(f"s3://images/{key}").abort()
        else:
            time.sleep(0.2)
            proxy.released.set()
            _, said = process.communicate(timeout=60)
            assert (process.returncode, said) == (130, b"")
    assert not unfinished(aws, key)
    assert not keys(aws, key)
    assert not list(state_folder.iterdir())


def test_uploads_killed_at_random_points_leave_nothing(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "soak-upload"
    command = [sys.executable, str(script), "--points", "5", "--folder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_summary_says_what_was_sent_and_no_secret_is_anywhere(
    raw: Path, proxy: FaultyProxy, aws: S3Server, state_folder: Path
) -> None:
    # The secret key holds the word, and so does the text of the server's refusals.
    assert "CANARY" in os.environ["AWS_SECRET_ACCESS_KEY"]
    target = "s3://images/canary.raw"
    done = diskfs("convert", "--json", "--verbose", raw, target)
    upload = json.loads(done.stdout)["upload"]
    assert upload["requests"] >= len(proxy.log) - 5
    assert upload["bytes_sent"] == raw.stat().st_size
    assert upload["retries"] == 0
    proxy.denied = lambda operation: (403, "AccessDenied") if operation == "UploadPart" else None
    proxy.hold_answer = lambda operation: operation == "AbortMultipartUpload"
    notes = b""
    with started(raw, target, "--force", "--verbose") as process:
        assert proxy.held.wait(60)
        notes = b"".join(path.read_bytes() for path in state_folder.iterdir())
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        proxy.released.set()
        output, said = process.communicate(timeout=60)
    assert said.count(b"denied") == 1
    for text in (done.stdout.encode(), done.stderr.encode(), output, said, notes, shown):
        for secret in (b"CANARY", b"Signature", os.environ["AWS_ACCESS_KEY_ID"].encode()):
            assert secret not in text
    assert b"upload_id" in notes
    assert hashlib.sha256(download(aws, "canary.raw", state_folder.parent / "x").read_bytes()).digest() == (
        hashlib.sha256(raw.read_bytes()).digest()
    )
