"""The child that reads file systems: it has no disk, no file and no network, and asks for every byte over a socket.

It is started by `diskfs.guest.child` and answers one request at a time. What a reader raises becomes an answer; what
ends the process, or takes too long, is noticed on the other side.
"""

import collections
import importlib
import resource
import socket
import struct
from collections.abc import Sequence
from typing import Any

from diskfs.guest import messages
from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestEntry
from diskfs.guest.readers.device import BlockCache, Device
from diskfs.guest.readers.reader import Reader

READERS = {
    "ext2": "sleuthkit",
    "ext3": "sleuthkit",
    "ext4": "sleuthkit",
    "vfat": "sleuthkit",
    "exfat": "sleuthkit",
    "xfs": "xfs",
    "ntfs": "ntfs",
    "btrfs": "btrfs",
}
"""Which module reads a file system, by the name that `diskfs.guest.filesystems` gives it."""

MAX_KEPT = 64
"""Files of one volume whose place is kept between reads."""

MEMORY_LIMIT = 1 << 30
"""Bytes of address space."""

FAILURES = (
    GuestError,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    struct.error,
    RecursionError,
    MemoryError,
    SystemError,
)
"""What a reader may raise over damaged bytes."""


def serve(descriptor: int, sizes: Sequence[int], cpu_seconds: int) -> None:
    """Answer requests until the other side closes. `sizes` are the bytes of each disk."""
    connection = socket.socket(fileno=descriptor)
    for name in sorted({*READERS.values(), "lvm"}):
        importlib.import_module(f"diskfs.guest.readers.{name}")
    limit(cpu_seconds)
    Server(connection, sizes).run()


def limit(cpu_seconds: int) -> None:
    """Give up everything that reading needs not: memory, time, and new descriptors of any kind."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # Without a free descriptor nothing can be opened, connected or listened on.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


class Server:
    """The child's end of the connection."""

    def __init__(self, connection: socket.socket, sizes: Sequence[int]) -> None:
        self._connection = connection
        self._cache = BlockCache(self._fetch, sizes)
        self._volumes: dict[int, OpenedVolume] = {}

    def run(self) -> None:
        """Answer until the connection ends."""
        messages.send(self._connection, {"ready": True})
        while True:
            try:
                request, _ = messages.receive(self._connection)
            except messages.ConnectionEnded:
                return
            try:
                answer, data = self._answer(request)
            except FAILURES as error:
                # Only the first sentence: the libraries append how they got there.
                answer, data = {"error": _reason(error).removeprefix(f"{request.get('path')}: ")}, b""
            messages.send(self._connection, answer, data)

    def _fetch(self, disk: int, offset: int, length: int) -> bytes:
        messages.send(self._connection, {"read": [disk, offset, length]})
        answer, data = messages.receive(self._connection)
        if "error" in answer or len(data) != length:
            raise OSError(f"disk{disk}: {length} bytes at {offset:#x} cannot be read")
        return data

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        what = request["do"]
        if what == "lvm":
            from diskfs.guest.readers.lvm import logical_volumes  # noqa: PLC0415 - loaded before

            devices = [Device(self._cache, _segments(segments)) for segments in request["members"]]
            return {"groups": logical_volumes(devices)}, b""
        if what == "open":
            device = Device(self._cache, _segments(request["segments"]))
            volume = OpenedVolume(request["kind"], device, request.get("subvolume"))
            self._volumes[request["volume"]] = volume
            superblock = volume.reader.superblock
            return {
                "label": superblock.label,
                "uuid": superblock.uuid,
                "size": superblock.size,
                "state": sorted(superblock.state),
            }, b""
        volume = self._volumes[request["volume"]]
        if what == "free":
            return {"free": volume.reader.free()}, b""
        if what == "systems":
            return {"systems": volume.reader.systems()}, b""
        if what == "entry":
            found = volume.reader.find(request["path"], follow=request["follow"])
            return {"entry": None if found is None else entry_values(found[1])}, b""
        if what == "entries":
            return {"entries": [entry_values(entry) for entry in volume.reader.list(request["path"])]}, b""
        if what == "size":
            return {"size": volume.file(request["path"])[1].size}, b""
        node, entry = volume.file(request["path"])
        offset, length = request["offset"], request["length"]
        data = volume.reader.read_at(node, offset, length)
        if len(data) != length:
            raise GuestError(f"{length} bytes at {offset:#x} were asked for, {len(data)} are there of {entry.size}")
        return {}, data


class OpenedVolume:
    """A file system and the files in it that were read last."""

    def __init__(self, kind: str, device: Device, subvolume: int | None) -> None:
        self.reader = open_reader(kind, device, subvolume)
        self._files: collections.OrderedDict[str, tuple[Any, GuestEntry]] = collections.OrderedDict()

    def file(self, path: str) -> tuple[Any, GuestEntry]:
        """Return a file's node and entry; raises GuestError if it is none."""
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = self.reader.require(path)
            if len(self._files) > MAX_KEPT:
                self._files.popitem(last=False)
        if found[1].kind is not FileKind.FILE:
            raise GuestError("it is not a file")
        return found


def open_reader(kind: str, device: Device, subvolume: int | None = None) -> Reader[Any]:
    """Open the file system on a device; raises as readers do."""
    module = importlib.import_module(f"diskfs.guest.readers.{READERS[kind]}")
    reader: Reader[Any] = module.open_reader(kind, device, subvolume)
    return reader


def entry_values(entry: GuestEntry) -> list[Any]:
    """Return an entry as JSON has it."""
    return [entry.name, entry.kind.value, entry.size, entry.mode, entry.target, entry.mtime, entry.uid]


def _segments(values: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    return [(disk, offset, length) for disk, offset, length in values]


def _reason(error: BaseException) -> str:
    if isinstance(error, GuestError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"reading it takes over {MEMORY_LIMIT >> 20} MiB of memory"
    if isinstance(error, (OSError, ValueError)) and str(error):
        return " ".join(str(error).split())[:400]
    return f"a value in it makes no sense ({type(error).__name__}: {error})"[:400]
