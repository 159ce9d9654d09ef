"""File systems made to be read without end: each ends in an error that says so, or is read in bounded time."""

import contextlib
import mmap
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from diskfs.disks.opening import open_source
from diskfs.guest.errors import GuestError
from diskfs.guest.files import GuestFiles
from diskfs.guest.readers import lzo, reader, xfs
from diskfs.guest.readers.device import BlockCache, Device
from diskfs.guest.serving import open_reader
from diskfs.guest.volumes import Volumes, volumes
from tests.guest import file_systems as make
from tests.helpers import ROOT

RUNS = 8


@contextlib.contextmanager
def found_in(image: Path) -> Iterator[Volumes]:
    with open_source(str(image), format_name="raw") as source, volumes(source) as found:
        yield found


@contextlib.contextmanager
def files_in(image: Path) -> Iterator[GuestFiles]:
    with found_in(image) as found:
        assert found[0].files is not None, found[0].problem
        yield found[0].files


def test_a_short_campaign_of_damage_finds_nothing() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fuzz-guest"), "--runs", str(RUNS), "--seed", "tests"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=ROOT)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        (kind, str(RUNS), "0") for kind in ("ext4", "ext2", "xfs", "btrfs", "ntfs", "vfat")
    ]


def test_folders_in_a_circle_end_at_the_longest_path(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    image = make.make_ext(tmp_path / "disk.img", tree)
    make.run("debugfs", "-w", "-R", "link /a /a/b/again", str(image))
    with files_in(image) as files:
        entry = files.entry("/a" + "/b/again" * 400)
        assert entry is not None
        assert [inside.name for inside in files.entries("/a" + "/b/again" * 20)] == ["b"]
        with pytest.raises(GuestError, match="over the limit of 4096"):
            files.entry("/a" + "/b/again" * 600)


def test_links_that_grow_end_at_the_longest_path(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "grow").symlink_to("grow/" + "x/" * 400)
    (tree / "up").symlink_to("../" * 100 + "up")
    image = make.make_ext(tmp_path / "disk.img", tree)
    with files_in(image) as files:
        with pytest.raises(GuestError, match=r"over 4096 characters|over 40 links"):
            files.entry("/grow")
        with pytest.raises(GuestError, match="over 40 links"):
            files.entry("/up")


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "xfs"])
def test_a_folder_with_too_many_names_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with a lower limit: the tools take minutes to make a folder of 65,537 names."""
    tree = tmp_path / "tree"
    (tree / "full").mkdir(parents=True)
    for number in range(41):
        (tree / f"full/{number}").symlink_to("x")
    makers = {"ext4": make.make_ext, "btrfs": make.make_btrfs, "xfs": make.make_xfs}
    image = makers[kind](tmp_path / "disk.img", tree)
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cache = BlockCache(lambda _, offset, length: data[offset : offset + length], [len(data)])
        opened = open_reader(kind, Device(cache, [(0, 0, len(data))]))
        for module in (reader, xfs):
            monkeypatch.setattr(module, "MAX_ENTRIES", 41)
        assert len(opened.list("/full")) == 41
        assert opened.find("/full/40", follow=False) is not None
        for module in (reader, xfs):
            monkeypatch.setattr(module, "MAX_ENTRIES", 40)
        with pytest.raises(GuestError, match="/full: the folder has over 40 entries"):
            opened.list("/full")
        del opened


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_file_of_terabytes_costs_what_is_read(kind: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    size = 1 << 40
    with (tree / "huge").open("wb") as file:
        file.truncate(size)
    image = (
        make.make_ext(tmp_path / "disk.img", tree) if kind == "ext4" else _btrfs_of(tmp_path / "disk.img", tree, size)
    )
    with files_in(image) as files:
        began = time.monotonic()
        with pytest.raises(GuestError, match=rf"/huge: the file has {size} bytes, over the limit of 1000"):
            files.read("/huge", limit=1000)
        assert files.open("/huge").read_at(size - 5000, 5000) == bytes(5000)
        assert time.monotonic() - began < 10


def _btrfs_of(image: Path, tree: Path, size: int) -> Path:
    """mkfs.btrfs writes holes out, so the size is set afterwards, in the one inode of an empty file."""
    (tree / "huge").write_bytes(b"")
    make.make_btrfs(image, tree)
    data = bytearray(image.read_bytes())
    for start, node in _btrfs_nodes(data):
        count = int.from_bytes(node[0x60:0x64], "little")
        for index in range(count if not node[0x64] else 0):
            item = 0x65 + index * 25
            at = 0x65 + int.from_bytes(node[item + 17 : item + 21], "little")
            if node[item + 8] == 1 and stat.S_ISREG(int.from_bytes(node[at + 52 : at + 56], "little")):
                data[start + at + 16 : start + at + 24] = size.to_bytes(8, "little")
                _set_checksum(data, start, len(node))
    image.write_bytes(data)
    return image


def test_a_tree_of_btrfs_that_leads_to_itself(tmp_path: Path) -> None:
    tree = make.make_tree(tmp_path / "tree")
    image = make.make_btrfs(tmp_path / "disk.img", tree, "-n", "4096", "-m", "single")
    data = bytearray(image.read_bytes())
    changed = 0
    for start, node in _btrfs_nodes(data, 4096):
        owner, level = int.from_bytes(node[0x58:0x60], "little"), node[0x64]
        if owner == 5 and level:
            for index in range(int.from_bytes(node[0x60:0x64], "little")):
                at = start + 0x65 + index * 33 + 17
                data[at : at + 8] = node[0x30:0x38]
            _set_checksum(data, start, len(node))
            changed += 1
    image.write_bytes(data)
    assert changed
    with files_in(image) as files:
        with pytest.raises(GuestError, match=r"disk0: /etc: tree node at 0x[0-9a-f]+: level"):
            files.entry("/etc")


def _btrfs_nodes(data: bytearray, size: int = 16384) -> Iterator[tuple[int, bytes]]:
    """Yield the tree nodes that are in use, found by the file system's own identifier."""
    identifier = bytes(data[0x10020:0x10030])
    for start in range(0x11000, len(data) - size, 4096):
        node = bytes(data[start : start + size])
        if node[0x20:0x30] == identifier and google_crc32c.value(node[32:]) == int.from_bytes(node[:4], "little"):
            yield start, node


def _set_checksum(data: bytearray, start: int, size: int) -> None:
    data[start : start + 4] = google_crc32c.value(bytes(data[start + 32 : start + size])).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("kind", "offset", "value"),
    [
        ("ext4", 0x400 + 0x18, b"\xff\xff\xff\xff"),  # s_log_block_size
        ("ext4", 0x400 + 0x28, bytes(4)),  # s_inodes_per_group
        ("ext4", 0x400 + 0x28, b"\xff\xff\xff\xff"),
        ("ext4", 0x400 + 0x20, bytes(4)),  # s_blocks_per_group
        ("ext4", 0x400 + 0x58, b"\xff\xff"),  # s_inode_size
        ("ext4", 0x400 + 0x04, b"\xff\xff\xff\x7f"),  # s_blocks_count_lo
        ("vfat", 13, b"\0"),  # BPB_SecPerClus
        ("vfat", 36, b"\xff\xff\xff\xff"),  # BPB_FATSz32
        ("vfat", 17, b"\xff\xff"),  # BPB_RootEntCnt
        ("ntfs", 64, b"\x80"),  # clusters per file record
        ("ntfs", 48, b"\xff" * 8),  # place of $MFT
        ("ntfs", 13, b"\x80"),  # sectors per cluster
    ],
)
def test_superblocks_that_make_no_sense(
    kind: str, offset: int, value: bytes, tmp_path: Path, small: dict[str, bytes]
) -> None:
    data = bytearray(small[kind])
    data[offset : offset + len(value)] = value
    image = tmp_path / "disk.img"
    image.write_bytes(data)
    began = time.monotonic()
    with found_in(image) as found:
        for volume in found:
            if volume.files is None:
                assert volume.filesystem is None or re.match(r"disk0: ", volume.problem), volume.problem
            else:
                with contextlib.suppress(GuestError):
                    volume.files.entries("/")
    assert time.monotonic() - began < 30


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    tree = make.make_tree(folder / "tree", many=5)
    return {
        "ext4": make.make_ext(folder / "ext4", tree, size="16M").read_bytes(),
        "vfat": make.make_fat(folder / "vfat", tree, 32, 40 << 20).read_bytes(),
        "ntfs": make.make_ntfs(folder / "ntfs", tree).read_bytes(),
    }


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "ends"),
        (b"\x00" * 300, "ends"),  # a length without end
        (b"\x15abcd", "ends"),
        (b"\x15abcd\xff\xff\xff", "back"),  # from before the first byte
        (b"\x12a" + b"\x20" + b"\0" * 200 + b"\xff\x00\x00", "at most 100"),  # one byte, copied for ever
        (b"\x80" * 50, "back|ends"),
    ],
)
def test_damaged_lzo(stream: bytes, message: str) -> None:
    with pytest.raises(GuestError, match=message):
        lzo.decompress(stream, 100)


def test_lzo_of_the_specification() -> None:
    """One literal run, a copy of it, and the end: from the description of the instructions."""
    # 0x15: four literals; 0x6c 0x00: four bytes, 1 + 3 back; 0x11 0 0: the end.
    assert lzo.decompress(b"\x15abcd" + b"\x6c\x00" + b"\x11\x00\x00", 100) == b"abcdabcd"
