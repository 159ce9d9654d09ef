"""Disks of an appliance that need other files of it: parents by parentRef or by name, and no file from elsewhere."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from diskfs.disks.opening import OpenedSource, open_source
from diskfs_formats.errors import CorruptImage, ParentUnavailable, UnsupportedFeature
from tests.fuse.mounting import diskfs, run

CHILD, PARENT = "ntfs-differential.vhd", "ntfs-parent.vhd"
OF_THE_CHAIN = "b7922a46a6b08fa4f4fc0c51a25d5587d1d49f15cfade45ca740dd07110ae144"
"""The content of the child, by libvhdi (corpus manifest)."""


def descriptor(disks: list[tuple[str, str, str]]) -> str:
    """Return an OVF whose disks are (id, file, parentRef)."""
    files = "".join(f'<File ovf:href="{name}" ovf:id="f-{number}"/>' for number, (_, name, _) in enumerate(disks))
    entries = "".join(
        f'<Disk ovf:capacity="4194304" ovf:diskId="{disk}" ovf:fileRef="f-{number}" ovf:format="vhd"'
        + (f' ovf:parentRef="{parent}"' if parent else "")
        + "/>"
        for number, (disk, _, parent) in enumerate(disks)
    )
    namespace = "http://schemas.dmtf.org/ovf/envelope/1"
    return (
        f'<?xml version="1.0"?><Envelope xmlns="{namespace}" xmlns:ovf="{namespace}"><References>{files}</References>'
        f"<DiskSection><Info/>{entries}</DiskSection></Envelope>"
    )


def appliance(folder: Path, corpus: Path, disks: list[tuple[str, str, str]], extra: tuple[str, ...] = ()) -> Path:
    for name in {*(name for _, name, _ in disks), *extra}:
        shutil.copy(corpus / "dfvfs" / name, folder / name)
    (folder / "vm.ovf").write_text(descriptor(disks))
    names = dict.fromkeys(["vm.ovf", *(name for _, name, _ in disks), *extra])
    run("tar", "--format=ustar", "-C", folder, "-cf", folder / "vm.ova", *names)
    return folder / "vm.ova"


def content(opened: OpenedSource, index: int) -> str:
    image = opened.disk(index).image
    return hashlib.sha256(image.read_at(0, image.size)).hexdigest()


@pytest.mark.parametrize("parent_ref", ["base", ""], ids=["by parentRef", "by name"])
@pytest.mark.parametrize("container", ["ova", "ovf"])
def test_a_child_finds_its_parent_among_the_disks(
    parent_ref: str, container: str, corpus: Path, tmp_path: Path
) -> None:
    archive = appliance(tmp_path, corpus, [("top", CHILD, parent_ref), ("base", PARENT, "")])
    with open_source(str(archive if container == "ova" else tmp_path / "vm.ovf")) as opened:
        assert content(opened, 0) == OF_THE_CHAIN
        assert opened.disk(1).image.info.variant == "fixed"
    described = json.loads(diskfs("info", "--json", archive).stdout)["disks"][0]
    assert [link["name"].rpartition(":")[2] for link in described["chain"]] == [CHILD, PARENT]


def test_a_parent_that_is_a_member_but_no_disk_is_found_by_name(corpus: Path, tmp_path: Path) -> None:
    archive = appliance(tmp_path, corpus, [("top", CHILD, "")], (PARENT,))
    with open_source(str(archive)) as opened:
        assert content(opened, 0) == OF_THE_CHAIN


def test_a_parent_outside_the_archive_is_not_opened(corpus: Path, tmp_path: Path) -> None:
    archive = appliance(tmp_path, corpus, [("top", CHILD, "")])
    shutil.copy(corpus / "dfvfs" / PARENT, tmp_path / PARENT)
    with open_source(str(archive)) as opened, pytest.raises(ParentUnavailable, match=PARENT):
        _ = opened.disk(0).image
    with open_source(str(archive), allow_missing_parent=True) as opened:
        assert content(opened, 0) != OF_THE_CHAIN


def test_a_parent_ref_to_nothing_or_to_itself_is_refused(corpus: Path, tmp_path: Path) -> None:
    for parent_ref, error in (("nothing", ParentUnavailable), ("top", CorruptImage)):
        archive = appliance(tmp_path, corpus, [("top", CHILD, parent_ref)])
        with open_source(str(archive)) as opened, pytest.raises(error):
            _ = opened.disk(0).image


def test_a_delta_by_the_descriptor_whose_image_stands_alone_is_refused(corpus: Path, tmp_path: Path) -> None:
    archive = appliance(tmp_path, corpus, [("top", PARENT, "base"), ("base", "ntfs-fixed.vhd", "")])
    with open_source(str(archive)) as opened, pytest.raises(UnsupportedFeature, match="delta of disk 'base'"):
        _ = opened.disk(0).image


@pytest.mark.parametrize("container", ["ova", "ovf"])
def test_a_stream_optimized_disk_with_a_damaged_header_is_not_read_as_raw(
    container: str, corpus: Path, tmp_path: Path
) -> None:
    archive = appliance(tmp_path, corpus, [("only", PARENT, "")])
    described = (tmp_path / "vm.ovf").read_text()
    uri = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
    (tmp_path / "vm.ovf").write_text(described.replace('ovf:format="vhd"', f'ovf:format="{uri}"'))
    (tmp_path / PARENT).write_bytes(b"\xff" * 65536)
    run("tar", "--format=ustar", "-C", tmp_path, "-cf", archive, "vm.ovf", PARENT)
    with open_source(str(archive if container == "ova" else tmp_path / "vm.ovf")) as opened:
        with pytest.raises(CorruptImage, match="says that it is a stream-optimized VMDK"):
            opened.disk(0).image  # noqa: B018 - reading the property raises
