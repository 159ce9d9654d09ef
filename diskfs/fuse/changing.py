"""Which disks of a mount can be changed, and where the changes go: to an overlay, or into a raw image itself."""

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diskfs.disks.opening import OpenedSource
from diskfs.disks.overlay import OverlayFolder, SourceOptions
from diskfs.disks.writable_raw import WritableRawImage
from diskfs.errors import MountError
from diskfs.fuse.written import WrittenDisk
from diskfs.sources.file import FileSource
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.text import printable

log = logging.getLogger("diskfs.fuse")


@dataclass(frozen=True, slots=True)
class Changes:
    """Where what is written goes: the folder of an overlay, or with `in_place` the image."""

    overlay: Path | None = None
    in_place: bool = False

    @property
    def is_any(self) -> bool:
        """Whether the mount can be written to at all."""
        return self.overlay is not None or self.in_place


@contextmanager
def changeable(
    opened: OpenedSource, changes: Changes, how_opened: SourceOptions, mountpoint: Path
) -> Iterator[dict[int, WrittenDisk]]:
    """Put the disks that can be changed in the place of those of the source, and give them by index.

    A new overlay keeps `how_opened`, for the commands that open the source again. On leaving, everything that was
    written is made durable, and the disks are closed. Raises DiskfsError.
    """
    if changes.overlay is not None:
        _require_outside(changes.overlay, mountpoint)
        with _overlaid(opened, changes.overlay, how_opened) as written:
            yield written
    elif changes.in_place:
        with _in_place(opened) as written:
            yield written
    else:
        yield {}


@contextmanager
def _overlaid(opened: OpenedSource, folder: Path, how_opened: SourceOptions) -> Iterator[dict[int, WrittenDisk]]:
    with ExitStack() as closing:
        for disk in opened.disks:
            if isinstance(disk.stored, FileSource):
                closing.enter_context(_kept_as_it_is(disk.stored))
        overlay = OverlayFolder.open(folder, opened, create=True, options=how_opened)
        closing.callback(overlay.close)
        written = {}
        for disk in opened.disks:
            if disk.opened is not None:
                changed = overlay.disk(disk.index)
                disk.replace(changed)
                written[disk.index] = WrittenDisk(changed)
        yield written
        for each in written.values():
            each.disk.flush()


@contextmanager
def _kept_as_it_is(file: FileSource) -> Iterator[None]:
    """Keep `--read-write` off an image that an overlay needs unchanged, where its file system has locks."""
    with ExitStack() as closing:
        if stat.S_ISREG(file.status.st_mode):
            with suppress(OSError):
                descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                closing.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


@contextmanager
def _in_place(opened: OpenedSource) -> Iterator[dict[int, WrittenDisk]]:
    name = printable(opened.name)
    instead = "mount it with --overlay DIR, which keeps what is written apart"
    if opened.container is not None:
        raise UnsupportedFeature(f"{name}: an appliance ({opened.container}) is not changed in place; {instead}")
    disk = opened.disks[0]
    if disk.driver is None or disk.driver.name != "raw":
        kind = disk.driver.name if disk.driver else "an unknown format"
        raise UnsupportedFeature(f"{name}: only raw images are changed in place, and this is {kind}; {instead}")
    if not isinstance(disk.stored, FileSource):
        raise UnsupportedFeature(f"{name}: only local files and devices are changed in place; {instead}")
    image = WritableRawImage(disk.stored.path)
    try:
        if image.size != disk.stored.size or not image.is_same_file(disk.stored.status):
            raise MountError(f"{name}: another file has taken its place just now; mount again")
        disk.replace(image)
        yield {0: WrittenDisk(image)}
        image.flush()
    finally:
        image.close()


def _require_outside(folder: Path, mountpoint: Path) -> None:
    """Refuse an overlay that the mount would hide: serving a write would then wait for itself."""
    # Links in a circle are for whoever opens the folder to refuse.
    if Path(os.path.realpath(folder)).is_relative_to(mountpoint):
        raise MountError(
            f"{printable(str(folder))}: the overlay lies under the mountpoint {printable(str(mountpoint))}; choose a "
            "folder elsewhere"
        )
