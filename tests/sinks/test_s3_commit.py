"""`diskfs commit` to a real S3 server: the disk with its changes, and the options of both ends."""

import os
from pathlib import Path

from diskfs.disks.opening import open_source
from diskfs.disks.overlay import OverlayFolder
from tests.fuse.mounting import diskfs
from tests.servers.weed import S3Server

SIZE = 3 << 20


def test_commit_writes_the_changed_disk_to_s3(aws: S3Server, tmp_path: Path) -> None:
    raw, overlay = tmp_path / "disk.raw", tmp_path / "overlay"
    expected = bytearray(os.urandom(SIZE))
    raw.write_bytes(expected)
    with open_source(str(raw), format_name="raw") as source, OverlayFolder.open(overlay, source) as opened:
        opened.disk(0).write_at(4000, b"changed" * 100)
        opened.disk(0).discard(1 << 20, 1 << 20)
    expected[4000:4700] = b"changed" * 100
    expected[1 << 20 : 2 << 20] = bytes(1 << 20)
    target = "s3://images/committed.raw"
    diskfs("commit", overlay, target, "--endpoint-url", aws.endpoint, "--region", "us-east-1", "--verify")
    assert aws.client.get_object(Bucket="images", Key="committed.raw")["Body"].read() == expected
    # It is there now: what replaces it must be asked for, as for a file.
    diskfs("commit", overlay, target, expect=1)
    # The source may lie there as well, with the changes over it.
    above = tmp_path / "above"
    with open_source(target) as source, OverlayFolder.open(above, source) as opened:
        opened.disk(0).write_at(0, b"again")
    expected[:5] = b"again"
    diskfs("commit", above, "s3://images/again.raw")
    assert aws.client.get_object(Bucket="images", Key="again.raw")["Body"].read() == expected
