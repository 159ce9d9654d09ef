"""What tells one source from another: every file, and the identifiers that formats keep."""

import dataclasses
import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from diskfs.disks.opening import open_source
from diskfs.disks.overlay import OverlayDescription, OverlayFolder, SourceIdentity
from diskfs.disks.overlay.description import parse_description
from diskfs.disks.overlay.identity import DiskIdentity, FileIdentity
from diskfs.errors import DamagedOverlay, OtherSource

FILE = FileIdentity("vm.ova", 5, inode=7, mtime_ns=9)
DISK = DiskIdentity(0, "d1", "a.vmdk", "vmdk", "monolithicSparse", 1024, 512, ("CID 00000001",), (FILE,))
SOURCE = SourceIdentity("ova", FILE, (DISK,))
OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<References><File ovf:id="f1" ovf:href="a.vmdk"/><File ovf:id="f2" ovf:href="b.vmdk"/></References>
<DiskSection><Info>d</Info>
<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="3145728"/>
<Disk ovf:diskId="d2" ovf:fileRef="f2" ovf:capacity="4194304"/>
</DiskSection><VirtualSystem ovf:id="vm"><Info>v</Info></VirtualSystem></Envelope>
"""


def _disk(**changed: Any) -> SourceIdentity:
    return dataclasses.replace(SOURCE, disks=(dataclasses.replace(DISK, **changed),))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (dataclasses.replace(SOURCE, container=None), "it is a single image, expected ova"),
        (dataclasses.replace(SOURCE, file=dataclasses.replace(FILE, size=6)), "its size is 6, expected 5"),
        (dataclasses.replace(SOURCE, file=dataclasses.replace(FILE, etag='"x"')), 'its ETag is "x", expected none'),
        (
            dataclasses.replace(SOURCE, disks=()),
            "the disks that can be opened are none, expected 0; is a parent missing?",
        ),
        (_disk(format="raw"), "disk 0: its format is raw, expected vmdk"),
        (_disk(variant="streamOptimized"), "disk 0: its variant is streamOptimized, expected monolithicSparse"),
        (_disk(virtual_size=2048), "disk 0: its virtual size is 2048, expected 1024"),
        (_disk(sector_size=4096), "disk 0: its sector size is 4096, expected 512"),
        (_disk(id="d2"), "disk 0: its id is d2, expected d1"),
        (_disk(file_name="b.vmdk"), "disk 0: its file name is b.vmdk, expected a.vmdk"),
        (_disk(content_ids=()), "disk 0: its content ids is none, expected CID 00000001"),
        (_disk(files=()), "disk 0: it has 0 files, expected 1"),
        (
            _disk(files=(dataclasses.replace(FILE, mtime_ns=1),)),
            "disk 0: vm.ova: its time of modification is 1, expected 9",
        ),
    ],
)
def test_what_differs_is_named(other: SourceIdentity, text: str) -> None:
    assert SOURCE.difference(other) == text
    assert SOURCE.difference(SOURCE) is None


def test_an_identity_survives_being_stored() -> None:
    assert SourceIdentity.from_json(json.loads(json.dumps(SOURCE.as_json()))) == SOURCE


@pytest.mark.parametrize(
    "change",
    [
        {"block_size": 4097},
        {"id": "no uuid"},
        {"location": 5},
        {"options": {"parents": []}},
        {"source": {"container": None, "file": {}, "disks": []}},
        {"source": {**SOURCE.as_json(), "disks": [{**SOURCE.as_json()["disks"][0], "index": -1}]}},
        {"version": "1"},
        {"version": 0},
    ],
)
def test_a_description_whose_words_mean_nothing_is_refused(change: dict[str, Any]) -> None:
    from diskfs.disks.overlay.description import _checksum

    document = json.loads(OverlayDescription(uuid.UUID(int=1), "/disk", SOURCE).pack())
    assert parse_description(json.dumps(document).encode(), "overlay.json").identity == SOURCE
    document.update(change)
    del document["crc32c"]
    document["crc32c"] = _checksum(document)
    with pytest.raises(DamagedOverlay, match=r"overlay\.json: "):
        parse_description(json.dumps(document).encode(), "overlay.json")


def test_a_description_that_is_too_long_is_refused() -> None:
    with pytest.raises(DamagedOverlay, match="it has over 16777216 bytes"):
        parse_description(bytes((16 << 20) + 1), "overlay.json")
    with pytest.raises(DamagedOverlay, match="it is no JSON"):
        parse_description(b"[" * 100_000, "overlay.json")


@pytest.mark.parametrize(
    ("image_format", "word"), [("vpc", "unique id"), ("vhdx", "DataWriteGuid"), ("vdi", "uuidModify")]
)
def test_identifiers_of_formats_are_part_of_the_identity(image_format: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / f"disk.{image_format}"
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(path), "3M"], check=True)
    with open_source(str(path)) as source:
        (content_id,) = SourceIdentity.of(source).disks[0].content_ids
    assert content_id.startswith(word + " ")
    stated = uuid.UUID(content_id.split()[-1])
    content = path.read_bytes()
    if image_format == "vpc":
        # "Hard Disk Footer Format": the unique id has the bytes 68 to 83 of the footer.
        assert stated.bytes == content[-512 + 68 : -512 + 84]
    else:
        assert stated.bytes_le in content


def test_the_disks_of_an_appliance_have_one_folder(tmp_path: Path) -> None:
    (tmp_path / "vm.ovf").write_text(OVF)
    for name, size in (("a.vmdk", "3M"), ("b.vmdk", "4M")):
        options = ["-o", "subformat=streamOptimized"]
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "vmdk", *options, str(tmp_path / name), size],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    members = ["vm.ovf", "a.vmdk", "b.vmdk"]
    subprocess.run(["tar", "--format=ustar", "-cf", "vm.ova", *members], check=True, cwd=tmp_path)
    before = (tmp_path / "vm.ova").read_bytes()
    for name in ("vm.ova", "vm.ovf"):
        folder = tmp_path / f"overlay of {name}"
        with open_source(str(tmp_path / name)) as source, OverlayFolder.open(folder, source) as overlay:
            overlay.disk(0).write_at(3 * 1024 * 1024 - 5, b"first")
            overlay.disk(1).write_at(4 * 1024 * 1024 - 6, b"second")
            overlay.flush()
            assert overlay.disk(0).read_at(3 * 1024 * 1024 - 5, 5) == b"first"
        with open_source(str(tmp_path / name)) as source, OverlayFolder.open(folder, source, create=False) as overlay:
            assert overlay.disk(0).read_at(3 * 1024 * 1024 - 5, 5) == b"first"
            assert overlay.disk(1).read_at(4 * 1024 * 1024 - 6, 6) == b"second"
        assert list(OverlayFolder.check(folder)) == []
        assert sorted(path.name for path in folder.iterdir()) == [
            "disk0.data",
            "disk0.index",
            "disk1.data",
            "disk1.index",
            "lock",
            "overlay.json",
        ]
    assert (tmp_path / "vm.ova").read_bytes() == before
    # The disks of an OVF are files of their own, and count.
    (tmp_path / "b.vmdk").touch()
    with open_source(str(tmp_path / "vm.ovf")) as source:
        with pytest.raises(OtherSource, match=r"disk 1: .*b\.vmdk: its time of modification is"):
            OverlayFolder.open(tmp_path / "overlay of vm.ovf", source)
