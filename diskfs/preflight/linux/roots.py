"""Which file systems hold an operating system of the Linux kind, and the tree that its fstab makes of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestFiles, Volume
from diskfs.preflight.linux.devices import Devices
from diskfs.preflight.linux.fstab import Fstab, FstabEntry, parse_fstab
from diskfs.preflight.linux.text import MAX_TEXT, decode
from diskfs.preflight.linux.tree import GuestTree, Prefixed

UNIX_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "jfs", "reiserfs", "f2fs"})

MARKS = (
    "fstab",
    "passwd",
    "os-release",
    "debian_version",
    "redhat-release",
    "SuSE-release",
    "lsb-release",
    "system-release",
)
"""Files in /etc that make it the configuration of a system."""
SUBVOLUMES = ("/@", "/@rootfs", "/root", "/@/.snapshots/1/snapshot")
"""Where Debian, Ubuntu, Fedora and SUSE put the system inside a Btrfs."""
MAX_MOUNTS = 64


@dataclass(frozen=True, slots=True)
class Root:
    """A file system with an /etc; `prefix` is the folder that is its root, empty but for Btrfs subvolumes."""

    volume: Volume
    files: GuestFiles
    prefix: str
    marks: tuple[str, ...]
    subvolume: str = ""
    """The Btrfs subvolume that holds the system, empty where none does."""

    @property
    def place(self) -> str:
        return f"{self.volume.name}:{self.prefix}/etc"


def find_roots(volumes: Sequence[Volume]) -> list[Root]:
    """Return every file system that has an /etc of an operating system, the likeliest first.

    Raises GuestError only if none was found and a file system could not be read.
    """
    found: list[Root] = []
    problem: GuestError | None = None
    for volume in volumes:
        files = volume.files
        if files is None or volume.filesystem not in UNIX_FILESYSTEMS:
            continue
        try:
            is_subvolume = any(_is_inside(volume, other) for other in volumes)
            # Where subvolumes are volumes of their own, they are not looked for as folders.
            has_subvolumes = any(_is_inside(other, volume) for other in volumes)
            prefixes = ("",) if is_subvolume or has_subvolumes else ("", *SUBVOLUMES)
            for root in _roots_in(volume, files, prefixes):
                path = volume.name.rpartition(":")[2] if is_subvolume else root.prefix
                found.append(dataclasses.replace(root, subvolume=path))
        except GuestError as error:
            problem = problem or error
    if not found and problem is not None:
        raise problem
    return sorted(found, key=lambda root: (-len(root.marks), volumes.index(root.volume)))


def _is_inside(volume: Volume, other: Volume) -> bool:
    """Tell whether a volume is a subvolume of another one's Btrfs."""
    return (
        volume.filesystem == other.filesystem == "btrfs"
        and volume.name.startswith(f"{other.name}:")
        and (volume.disk_index, volume.offset) == (other.disk_index, other.offset)
    )


def _roots_in(volume: Volume, files: GuestFiles, prefixes: Sequence[str]) -> Iterator[Root]:
    for prefix in prefixes if files.kind == "btrfs" else ("",):
        etc = files.entry(f"{prefix}/etc")
        if etc is None or etc.kind is not FileKind.FOLDER:
            continue
        marks = tuple(name for name in MARKS if files.entry(f"{prefix}/etc/{name}", follow=False) is not None)
        if marks:
            yield Root(volume, files, prefix, marks)


def mount_tree(root: Root, devices: Devices) -> tuple[GuestTree, dict[str, Volume]]:
    """Return the tree that the root's fstab makes, and which volume is mounted where.

    An fstab that cannot be read leaves the root alone; its lines that name no known volume are left out.
    """
    mounts = {"/": Prefixed(root.files, root.prefix)}
    volumes = {"/": root.volume}
    try:
        source = root.files.open(f"{root.prefix}/etc/fstab")
        fstab = parse_fstab(decode(source.read_at(0, min(source.size, MAX_TEXT))))
    except GuestError:
        fstab = Fstab((), (), has_nul=False)
    for entry in sorted(fstab.entries, key=lambda one: one.file)[:1000]:
        target = entry.file.rstrip("/")
        if not target.startswith("/") or entry.is_swap or target in mounts or len(mounts) >= MAX_MOUNTS:
            continue
        if entry.is_pseudo or entry.is_network:
            continue
        match = devices.resolve(entry.spec)
        if match is not None and match.volume.files is not None and match.volume is not root.volume:
            mounts[target] = Prefixed(match.volume.files, _subvolume(entry))
            volumes[target] = match.volume
        elif match is not None and match.volume is root.volume and _subvolume(entry):
            mounts[target] = Prefixed(root.files, _subvolume(entry))
    return GuestTree(mounts), volumes


def _subvolume(entry: FstabEntry) -> str:
    for option in entry.option_list:
        name, _, value = option.partition("=")
        if name == "subvol" and value.strip("/"):
            return "/" + value.strip("/")
    return ""
