"""File systems with known contents, made by their own tools, none of which mounts anything."""

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

MANY = 1200
"""Files of the folder that needs an index: htree in ext4, several blocks in XFS and Btrfs."""

SIZES = (0, 1, 59, 60, 61, 159, 160, 161, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 131071, 131073, 1 << 20)
"""Both sides of an inode's inline area, of sectors, blocks and the reader's own blocks."""

LINKS = (1, 58, 59, 60, 61, 155, 156, 157, 500, 1023)
"""Lengths of link targets: what fits into inodes of each kind, and what does not."""


def make_tree(folder: Path, *, seed: int = 7, many: int = MANY) -> Path:
    """Fill a folder and return it."""
    chance = random.Random(seed)
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/os-release").write_text("ID=example\nVERSION_ID=1\n")
    (folder / "sizes").mkdir()
    for size in SIZES:
        (folder / f"sizes/{size}").write_bytes(chance.randbytes(size))
    with (folder / "holes").open("wb") as file:
        # Every other block is a hole, so that the extents need a tree of more than one level.
        file.truncate(4 << 20)
        for block in range(0, 1024, 2):
            file.seek(block * 4096)
            file.write(block.to_bytes(8, "big") * 512)
        file.seek((4 << 20) - 5)
        file.write(b"hello")
    (folder / "many").mkdir()
    for number in range(many):
        (folder / f"many/{number:05d}-{'n' * (number % 60)}").write_text(str(number))
    (folder / "links").mkdir()
    for length in LINKS:
        (folder / f"links/{length}").symlink_to(("/" * length) if length < 12 else ("./" * length)[: length - 1] + "x")
    (folder / "links/good").symlink_to("../etc/./../etc/os-release")
    (folder / "links/absolute").symlink_to("/etc/os-release")
    (folder / "links/outside").symlink_to("../../../../../etc/os-release")
    (folder / "links/one").symlink_to("two")
    (folder / "links/two").symlink_to("one")
    (folder / "links/folder").symlink_to("../etc")
    (folder / "deep/a/b/c/d/e/f").mkdir(parents=True)
    (folder / "deep/a/b/c/d/e/f/file").write_text("deep")
    (folder / "deep/Grüße aus 東京").write_text("unicode")
    return folder


def make_ext(target: Path, tree: Path, kind: str = "ext4", *options: str, size: str = "48M") -> Path:
    run(f"mkfs.{kind}", "-q", "-F", "-L", "example", "-d", str(tree), *options, str(target), size)
    return target


def make_xfs(target: Path, tree: Path, *options: str) -> Path:
    """mkfs.xfs takes a list of what to put in (mkfs.xfs(8), protofile)."""
    lines = ["/", "0 0", "d--755 0 0", *_protofile(tree), "$", ""]
    proto = target.with_suffix(".proto")
    proto.write_text("\n".join(lines))
    with target.open("wb") as file:
        file.truncate(320 << 20)
    run("mkfs.xfs", "-q", "-L", "example", "-p", str(proto), *options, str(target))
    return target


def _protofile(folder: Path) -> list[str]:
    lines = []
    for path in sorted(folder.iterdir()):
        if " " in path.name:
            continue  # the list has no way to write it
        if path.is_symlink():
            lines.append(f"{path.name} l--777 0 0 {os.readlink(path)}")
        elif path.is_dir():
            lines += [f"{path.name} d--755 0 0", *_protofile(path), "$"]
        else:
            lines.append(f"{path.name} ---644 0 0 {path}")
    return lines


def make_btrfs(target: Path, tree: Path, *options: str) -> Path:
    with target.open("wb") as file:
        file.truncate(192 << 20)
    run("mkfs.btrfs", "-q", "-L", "example", "--rootdir", str(tree), *options, str(target))
    return target


def make_fat(target: Path, tree: Path, bits: int, size: int) -> Path:
    with target.open("wb") as file:
        file.truncate(size)
    run("mkfs.vfat", "-F", str(bits), "-n", "EXAMPLE", "-i", "1234abcd", str(target))
    for name in ("etc", "sizes", "deep"):
        run("mcopy", "-s", "-i", str(target), str(tree / name), "::")
    return target


def make_ntfs(target: Path, tree: Path) -> Path:
    """Files go into the root: ntfscp makes no folders."""
    with target.open("wb") as file:
        file.truncate(24 << 20)
    run("mkntfs", "-q", "-Q", "-F", "-L", "example", str(target))
    for size in SIZES:
        run("ntfscp", "-q", str(target), str(tree / f"sizes/{size}"), f"File{size}.bin")
    return target


def run(*command: str, stdin: str | None = None) -> str:
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, input=stdin or "", timeout=120, env=_environment()
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def files_of(tree: Path, folders: Sequence[str] = ()) -> list[Path]:
    """Return every file and link of a tree, relative to it; only of some folders if these are given."""
    roots = [tree / name for name in folders] or [tree]
    return [
        path.relative_to(tree)
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    ]


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
