"""What an initramfs holds: several cpio archives one after another, each as it is or compressed.

Specification: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Early microcode comes first, as an
archive that is not compressed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from diskfs.guest.errors import GuestError
from diskfs.preflight.linux.cpio import MAGICS, CpioMember, Stream, read_cpio
from diskfs.preflight.linux.decompressing import Decompression, compression_of
from diskfs_formats.errors import DiskfsError, UnsupportedFeature
from diskfs_formats.source import ByteSource

MAX_COMPRESSED = 512 << 20
READ = 1 << 20
"""Bytes that are read at a time: few requests, where the image is far away."""
MAX_CONTENT = 1 << 30
"""Bytes decompressed; Debian's with all modules has some 200 MiB."""
MAX_SECONDS = 40
"""For all of it; 200 MiB take one or two."""
MAX_ARCHIVES = 16
MAX_MODULES = 20_000


@dataclass(slots=True)
class Initramfs:
    """`problem` is why it cannot be read to its end, empty if it can; what came before it is told nevertheless."""

    path: str
    compressions: list[str] = field(default_factory=list)
    """Of each archive: `none`, `zstd` ..."""
    members: int = 0
    size: int = 0
    """Bytes of content."""
    modules: set[str] = field(default_factory=set)
    """Kernel modules by their name, with `_` for `-`."""
    builtin: set[str] = field(default_factory=set)
    releases: set[str] = field(default_factory=set)
    """The folders under lib/modules."""
    problem: str = ""
    is_unsupported: bool = False
    """The problem is ours: a compression that is not read."""

    def has(self, module: str) -> bool:
        return module_key(module) in self.modules


class _TooSlow(GuestError):
    """It took longer than MAX_SECONDS."""


def module_key(name: str) -> str:
    """Return a module's name as the kernel has it: xen-blkfront.ko.xz is xen_blkfront."""
    return name.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def read_initramfs(source: ByteSource, path: str) -> Initramfs:
    """Read all of an initramfs; whatever is wrong with it is its `problem`."""
    found = Initramfs(path)
    try:
        _read(source, found)
    except DiskfsError as error:
        found.problem = str(error)
        found.is_unsupported = isinstance(error, (UnsupportedFeature, _TooSlow))
    return found


def _read(source: ByteSource, found: Initramfs) -> None:
    if source.size == 0:
        raise GuestError(f"{found.path}: it is empty")
    if source.size > MAX_COMPRESSED:
        raise GuestError(f"{found.path}: it has {source.size} bytes, over the limit of {MAX_COMPRESSED}")
    raw = Stream(_puller(source), found.path)
    for _ in range(MAX_ARCHIVES):
        raw.skip_zeros()
        head = raw.peek(12)
        if not head:
            if not found.compressions:
                raise GuestError(f"{found.path}: it holds nothing but zeros")
            return
        if head.startswith(MAGICS):
            found.compressions.append("none")
            _note(read_cpio(raw), found)
            continue
        compression = compression_of(head)
        if compression is None:
            raise GuestError(
                f"{found.path}: byte {raw.offset}: {head[:6].hex()} is neither a cpio archive nor a known compression"
            )
        found.compressions.append(compression)
        _read_compressed(compression, raw, found)
    raise GuestError(f"{found.path}: over {MAX_ARCHIVES} archives follow each other")


def _read_compressed(compression: str, raw: Stream, found: Initramfs) -> None:
    """Read the archives in one compressed stream; `raw` goes on after it."""
    decompression = Decompression(compression, lambda: _piece_of(raw), found.path)
    pieces = decompression.pieces()
    start = found.size
    count = 0
    deadline = time.monotonic() + MAX_SECONDS

    def pull() -> bytes:
        nonlocal count
        if time.monotonic() > deadline:
            raise _TooSlow(f"{found.path}: to decompress it takes over {MAX_SECONDS} s")
        piece = next(pieces, b"")
        count += len(piece)
        if start + count > MAX_CONTENT:
            raise GuestError(f"{found.path}: its content is over the limit of {MAX_CONTENT} bytes")
        return piece

    inner = Stream(pull, found.path)
    for _ in range(MAX_ARCHIVES):
        inner.skip_zeros()
        if not inner.peek(1):
            break
        _note(read_cpio(inner), found)
    else:
        raise GuestError(f"{found.path}: over {MAX_ARCHIVES} archives follow each other")
    found.size = start + count
    raw.push_back(decompression.unused)


def _note(members: Iterator[CpioMember], found: Initramfs) -> None:
    for member in members:
        found.members += 1
        name = member.name
        if "lib/modules/" not in name:
            continue
        release = name.partition("lib/modules/")[2].partition("/")[0]
        if release and len(found.releases) < 64:
            found.releases.add(release)
        if ".ko" in name and len(found.modules) < MAX_MODULES:
            found.modules.add(module_key(name))


def _piece_of(stream: Stream) -> bytes:
    stream.peek(1)
    return stream.rest()


def _puller(source: ByteSource) -> Callable[[], bytes]:
    offset = 0

    def pull() -> bytes:
        nonlocal offset
        length = min(READ, source.size - offset)
        piece = source.read_at(offset, length) if length else b""
        offset += length
        return piece

    return pull
