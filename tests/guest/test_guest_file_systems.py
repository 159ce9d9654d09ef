"""What is read from a file system is what its maker put in."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestFiles
from diskfs.guest.volumes import Volumes, volumes
from tests.guest import file_systems as make
from tests.helpers import assert_same_bytes

MODERN = "metadata_csum,metadata_csum_seed,64bit,inline_data,extents,flex_bg,orphan_file,dir_index"

MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "ext4": lambda target, tree: make.make_ext(target, tree, "ext4", "-O", MODERN, "-I", "256"),
    "ext4-1k": lambda target, tree: make.make_ext(target, tree, "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum"),
    "ext3": lambda target, tree: make.make_ext(target, tree, "ext3", "-b", "1024"),
    "ext2": lambda target, tree: make.make_ext(target, tree, "ext2"),
    "xfs": lambda target, tree: make.make_xfs(
        target, tree, "-m", "crc=1,bigtime=1,inobtcount=1,rmapbt=1,reflink=1", "-i", "sparse=1,nrext64=1"
    ),
    "xfs-4": lambda target, tree: make.make_xfs(target, tree, "-m", "crc=0", "-n", "ftype=0"),
    "btrfs": make.make_btrfs,
    "btrfs-16k": lambda target, tree: make.make_btrfs(target, tree, "-n", "65536", "-m", "single"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.make_tree(tmp_path_factory.mktemp("tree") / "root")


@pytest.fixture(scope="module", params=list(MAKERS))
def unix(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestFiles]:
    target = tmp_path_factory.mktemp("image") / "disk.img"
    yield from opened(MAKERS[request.param](target, tree))


def opened(image: Path) -> Iterator[GuestFiles]:
    with open_source(str(image), format_name="raw") as source, volumes(source) as found:
        assert [volume.problem for volume in found] == [""]
        files = found[0].files
        assert files is not None
        yield files
    image.unlink()


def test_every_file_and_link_is_as_it_was_put_in(unix: GuestFiles, tree: Path) -> None:
    count = 0
    for path in make.files_of(tree):
        if unix.kind == "xfs" and " " in str(path):
            continue
        if path.parent.name == "many" and int(path.name[:5]) % 40:
            continue  # a request each: one in forty, and all of them are listed below
        original = tree / path
        entry = unix.entry(f"/{path}", follow=False)
        assert entry is not None, path
        if original.is_symlink():
            assert (entry.kind, entry.target, entry.size) == (
                FileKind.LINK,
                os.readlink(original),
                len(os.readlink(original)),
            )
            continue
        data = original.read_bytes()
        assert (entry.kind, entry.size) == (FileKind.FILE, len(data)), path
        assert_same_bytes(unix.read(f"/{path}", limit=len(data)), data)
        count += 1
    assert count > 50


def test_a_file_is_read_in_places(unix: GuestFiles, tree: Path) -> None:
    data = (tree / "holes").read_bytes()
    source = unix.open("/holes")
    assert source.size == len(data)
    for offset in (0, 4095, 4096, 8191, 8192, 65535, 65536, len(data) - 4096, len(data) - 1):
        for length in (0, 1, 4096, 9000):
            count = min(length, len(data) - offset)
            assert_same_bytes(source.read_at(offset, count), data[offset : offset + count])


def test_a_large_folder_is_listed_whole(unix: GuestFiles, tree: Path) -> None:
    entries = unix.entries("/many")
    assert [entry.name for entry in entries] == sorted(os.listdir(tree / "many"))
    assert [entry.size for entry in entries] == [(tree / "many" / entry.name).stat().st_size for entry in entries]


def test_modes_are_those_of_the_tree(unix: GuestFiles, tree: Path) -> None:
    entry = unix.entry("/etc")
    assert entry is not None
    assert (entry.kind, entry.mode) == (FileKind.FOLDER, 0o755)
    file = unix.entry("/etc/os-release")
    assert file is not None
    assert file.mode == 0o644
    assert file.mtime > 1_600_000_000


def test_links_stay_inside_and_end(unix: GuestFiles, tree: Path) -> None:
    release = (tree / "etc/os-release").read_bytes()
    for path in ("/links/good", "/links/absolute", "/links/outside", "/links/folder/os-release"):
        assert unix.read(path, limit=1000) == release
    assert unix.entry("/links/500") is None
    with pytest.raises(GuestError, match=r"/links/one: over 40 links"):
        unix.entry("/links/one")
    kept = unix.entry("/links/one", follow=False)
    assert kept is not None
    assert kept.target == "two"


def test_what_is_not_there_is_said(unix: GuestFiles) -> None:
    assert unix.entry("/nothing") is None
    assert unix.entry("/etc/os-release/below") is None
    with pytest.raises(GuestError, match=r"disk0: /nothing: there is no such file"):
        unix.read("/nothing", limit=10)
    with pytest.raises(GuestError, match=r"disk0: /etc: it is not a file"):
        unix.read("/etc", limit=10)
    with pytest.raises(GuestError, match=r"disk0: /holes: it is not a folder"):
        unix.entries("/holes")
    with pytest.raises(GuestError, match=r"disk0: /sizes/512: the file has 512 bytes, over the limit of 511"):
        unix.read("/sizes/512", limit=511)
    with pytest.raises(GuestError, match="not an absolute path"):
        unix.entry("etc")


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs"])
def test_label_uuid_size_and_free_space_are_what_the_tools_say(name: str, tree: Path, tmp_path: Path) -> None:
    image = MAKERS[name](tmp_path / "disk.img", tree)
    uuid = make.run("blkid", "-p", "-o", "value", "-s", "UUID", str(image)).strip()
    size, free = TOOLS[name](image)
    for files in opened(image):
        assert (files.kind, files.label, files.uuid, files.size, files.free) == (name, "example", uuid, size, free)
        assert (files.volume, files.state) == ("disk0", frozenset())


def _dumpe2fs(image: Path) -> tuple[int, int]:
    text = make.run("dumpe2fs", "-h", str(image))
    values = {
        name: int(re.findall(rf"^{name}: *(\d+)", text, re.MULTILINE)[0])
        for name in ("Block count", "Free blocks", "Block size")
    }
    return values["Block count"] * values["Block size"], values["Free blocks"] * values["Block size"]


def _xfs_db(image: Path) -> tuple[int, int]:
    text = make.run("xfs_db", "-r", "-c", "sb 0", "-c", "print dblocks fdblocks blocksize", str(image))
    blocks, free, size = (int(value) for value in re.findall(r"= (\d+)", text))
    return blocks * size, free * size


def _btrfs(image: Path) -> tuple[int, int]:
    text = make.run("btrfs", "inspect-internal", "dump-super", str(image))
    total, used = (
        int(re.findall(rf"^{name}\s+(\d+)", text, re.MULTILINE)[0]) for name in ("total_bytes", "bytes_used")
    )
    return total, total - used


TOOLS = {"ext4": _dumpe2fs, "xfs": _xfs_db, "btrfs": _btrfs}


def test_a_journal_that_was_not_replayed_is_a_state(tree: Path, tmp_path: Path) -> None:
    image = make.make_ext(tmp_path / "disk.img", tree / "etc")
    make.run("debugfs", "-w", "-R", "feature needs_recovery", str(image))
    make.run("debugfs", "-w", "-R", "set_super_value state 2", str(image))
    for files in opened(image):
        assert files.state == {"needs-journal-recovery", "unclean", "errors"}
        assert files.read("/os-release", limit=100) == (tree / "etc/os-release").read_bytes()


@pytest.mark.parametrize(("bits", "size"), [(12, 8 << 20), (16, 32 << 20), (32, 48 << 20)])
def test_fat_is_read_without_regard_to_case(bits: int, size: int, tree: Path, tmp_path: Path) -> None:
    image = make.make_fat(tmp_path / "disk.img", tree, bits, size)
    free = int(make.run("minfo", "-i", str(image), "::").split("free clusters=")[1].split()[0]) if bits == 32 else None
    for files in opened(image):
        assert (files.kind, files.label, files.uuid, files.size) == ("vfat", "EXAMPLE", "1234-ABCD", size)
        for path in make.files_of(tree, ["etc", "sizes", "deep"]):
            assert_same_bytes(files.read(f"/{str(path).upper()}", limit=1 << 21), (tree / path).read_bytes())
        assert [entry.name for entry in files.entries("/")] == ["deep", "etc", "sizes"]
        assert [entry.name for entry in files.entries("/deep")] == sorted(os.listdir(tree / "deep"))
        if free is not None:
            cluster = 512
            assert files.free == free * cluster


def test_a_fat_that_was_renamed_has_its_new_label(tree: Path, tmp_path: Path) -> None:
    image = make.make_fat(tmp_path / "disk.img", tree, 16, 32 << 20)
    make.run("mlabel", "-i", str(image), "::RENAMED")
    for files in opened(image):
        assert files.label == "RENAMED"
        assert [entry.name for entry in files.entries("/")] == ["deep", "etc", "sizes"]


def test_an_empty_exfat(tmp_path: Path) -> None:
    """No tool puts files into an exFAT that is not mounted."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    make.run("mkfs.exfat", "-L", "example", str(image))
    uuid = make.run("blkid", "-p", "-o", "value", "-s", "UUID", str(image)).strip()
    for files in opened(image):
        assert (files.kind, files.label, files.uuid, files.size) == ("exfat", "example", uuid, 32 << 20)
        assert files.entries("/") == ()
        assert files.entry("/none") is None


def test_ntfs_is_read_without_regard_to_case(tree: Path, tmp_path: Path) -> None:
    image = make.make_ntfs(tmp_path / "disk.img", tree)
    uuid = make.run("blkid", "-p", "-o", "value", "-s", "UUID", str(image)).strip()
    text = make.run("ntfsinfo", "-m", str(image))
    free = int(re.findall(r"Free Clusters: (\d+)", text)[0]) * 4096
    for files in opened(image):
        assert (files.kind, files.label, files.uuid, files.free) == ("ntfs", "example", uuid, free)
        assert [entry.name for entry in files.entries("/")] == sorted(f"File{size}.bin" for size in make.SIZES)
        for size in make.SIZES:
            entry = files.entry(f"/FILE{size}.BIN")
            assert entry is not None
            assert (entry.name, entry.size, entry.kind) == (f"File{size}.bin", size, FileKind.FILE)
            data = (tree / f"sizes/{size}").read_bytes()
            assert_same_bytes(files.read(f"/file{size}.bin", limit=size), data)
        assert files.entry("/none") is None
        assert files.entry("/File1.bin/none") is None


def test_volumes_of_a_partitioned_disk(tree: Path, tmp_path: Path) -> None:
    """A GPT with an ESP, a root file system, swap, a LUKS container, one that is empty and one that is not read."""
    esp = make.make_fat(tmp_path / "esp.img", tree, 16, 16 << 20)
    root = make.make_ext(tmp_path / "root.img", tree / "etc", size="8M")
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    table = "label: gpt\n" + "".join(f"start={mib}MiB, size={size}MiB\n" for mib, size in PLACES)
    make.run("sfdisk", "-q", str(disk), stdin=table)
    with disk.open("r+b") as file:
        contents = [
            esp.read_bytes(),
            root.read_bytes(),
            bytes(4086) + b"SWAPSPACE2",
            b"LUKS\xba\xbe\0\2",
            b"",
            bytes(32768) + b"JFS1",
        ]
        for (mib, _), data in zip(PLACES, contents, strict=True):
            file.seek(mib << 20)
            file.write(data)
    with open_source(str(disk)) as source, volumes(source) as found:
        assert [(v.name, v.disk_index, v.partition, v.offset >> 20, v.size >> 20, v.filesystem) for v in found] == [
            ("disk0p1", 0, 1, 1, 16, "vfat"),
            ("disk0p2", 0, 2, 17, 8, "ext4"),
            ("disk0p3", 0, 3, 25, 4, "swap"),
            ("disk0p4", 0, 4, 29, 4, "crypto_LUKS"),
            ("disk0p5", 0, 5, 33, 4, None),
            ("disk0p6", 0, 6, 37, 4, "jfs"),
        ]
        assert [v.problem for v in found] == [
            "",
            "",
            "",
            "it is encrypted with LUKS",
            "",
            "JFS is recognised and not read",
        ]
        assert [files.volume for files in found.files] == ["disk0p1", "disk0p2"]
        root_files = found[1].files
        assert root_files is not None
        assert root_files.read("/os-release", limit=100) == (tree / "etc/os-release").read_bytes()
        assert _releases(found) == ["disk0p1"]


PLACES = ((1, 16), (17, 8), (25, 4), (29, 4), (33, 4), (37, 4))


def _releases(found: Volumes) -> list[str]:
    return [files.volume for files in found.files if files.entry("/etc/os-release")]
