"""Commits of a small overlay to targets of every kind, whose changes of files and names are recorded and may be failed.

The calls are carried out in a real folder; beside that it is written down what of them is on the disk, and what a
power loss may undo.
"""

import contextlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from diskfs.convert.appliance import convert_appliance
from diskfs.convert.job import Job, convert_disk
from diskfs.disks.opening import OpenedSource, open_source
from diskfs.disks.overlay import OverlayFolder
from diskfs.sinks import system_calls
from diskfs.sinks.file import PARTIAL_SUFFIX
from diskfs_formats.driver import DiskImage
from diskfs_formats.source import Buffer
from diskfs_formats.writer import Progress, WriteOptions, no_progress
from scripts.overlaylib.simulated import Entry, NameChange, Node, Operation, SimulatedStorage

BYSTANDER = "bystander"
"""A file in the target's folder that no commit may touch."""
_FLAT = re.compile(rb'FLAT "([^"\n]+)"')
_OVERLAY = Path("overlay")

Image = tuple[bytes, tuple[tuple[str, bytes | None], ...]]
"""A main file's content, and the name and content of each further file that it names; None for one that is missing."""
Files = Callable[[str], bytes | None]
"""Gives the content of a file of a folder; None if it is missing."""


class Broken(Exception):
    """A commit did something else than it promises."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of target."""

    format: str
    variant: str = ""

    @property
    def file_name(self) -> str:
        """The name of the main file."""
        return f"image.{self.format}"

    def image(self, files: Files) -> Image | None:
        """Return the image in a folder, None if there is none."""
        main = files(self.file_name)
        if main is None:
            return None
        names = _FLAT.findall(main) if self.variant == "monolithicFlat" else []
        return main, tuple((name.decode(), files(name.decode())) for name in names)

    def __str__(self) -> str:
        return f"{self.format} {self.variant}".rstrip()


TARGETS = (
    Target("raw"), Target("vmdk", "streamOptimized"), Target("vmdk", "monolithicSparse"),
    Target("vmdk", "monolithicFlat"), Target("vhd", "dynamic"), Target("vhd", "fixed"), Target("vhdx"), Target("ova"),
)  # fmt: skip


class Overlay:
    """An open overlay with changes, on a simulated storage over a source in a real folder; its commits."""

    def __init__(self, folder: Path, *, runs: int) -> None:
        """Make a disk with `runs` runs of data; `folder` is for the source."""
        chance = random.Random(11)
        # Blocks of zeroes part the runs: each becomes a write of its own.
        size = runs * 3 * 4096 + 512
        content = bytearray(size)
        for run in range(runs):
            length = chance.choice((512, 3000, 4096, 8192))
            content[run * 12288 : run * 12288 + length] = chance.randbytes(length)
        content[-300:] = chance.randbytes(300)
        path = folder / "source.raw"
        path.write_bytes(content)
        with contextlib.ExitStack() as stack:
            older = folder / "older.raw"
            older.write_bytes(content[:-4096])
            self._older: OpenedSource = stack.enter_context(closing(open_source(str(older), format_name="raw")))
            self.source: OpenedSource = stack.enter_context(closing(open_source(str(path), format_name="raw")))
            self.storage = SimulatedStorage()
            overlay = OverlayFolder.open(_OVERLAY, self.source, storage=self.storage, block_size=2048)
            self.disk: DiskImage = stack.enter_context(overlay).disk(0)
            overlay.disk(0).write_at(5000, chance.randbytes(6000))
            overlay.disk(0).write_at(size - 100, b"changed")
            overlay.disk(0).flush()
            self.expected = self.disk.read_at(0, size)
            self._stack = stack.pop_all()
        self._changes = len(self.storage.journal)

    def commit(self, target: Target, folder: Path, *, replace: bool) -> None:
        """Write the disk with its changes; raises DiskfsError."""
        _convert(self.disk, target, folder, replace=replace)

    def write_old(self, target: Target, folder: Path, *, replace: bool = False) -> None:
        """Write an old image: of a smaller disk, so that no file of it is as the new one's."""
        _convert(self._older.disk(0).image, target, folder, replace=replace)

    def require_unchanged(self) -> None:
        """Raise Broken if anything was written to the overlay since it was made."""
        if len(self.storage.journal) != self._changes:
            raise Broken("the commit has changed the overlay")

    def close(self) -> None:
        """Close the overlay, let the power fail, and look whether it is what it was; raises Broken."""
        size = self.disk.size
        left = self.storage.after_power_loss()
        with OverlayFolder.open(_OVERLAY, self.source, storage=left) as overlay:
            if overlay.disk(0).read_at(0, size) != self.expected:
                raise Broken("the overlay has other content than before the commits")
        self._stack.close()


@contextlib.contextmanager
def _silent(_name: str, _size: int) -> Iterator[Progress]:
    yield no_progress


def _convert(disk: DiskImage, target: Target, folder: Path, *, replace: bool) -> None:
    options = WriteOptions(target.variant, target.file_name, threads=1, reproducible=True)
    job = Job(str(folder / target.file_name), target.format, options, replace)
    if target.format == "ova":
        convert_appliance([disk], job, _silent)
    else:
        convert_disk(disk, job, _silent)


Watcher = Callable[[str, int], int]
"""Called before each call with its kind and, of a write, its length in bytes. May raise OSError in its stead; returns
how many bytes are to be written."""


class Recorder:
    """Takes the place of the system calls of the file sink, for one folder. Syncs take no time."""

    def __init__(self, folder: Path, watcher: Watcher | None = None) -> None:
        """Begin with what the folder has, all of it on the disk."""
        self._folder = folder
        self._watcher = watcher
        self._numbers = itertools.count()
        self._files: dict[int, Node] = {}
        self.journal: list[Entry] = []
        self.names = {path.name: self._node(path.read_bytes()) for path in sorted(folder.iterdir())}
        self.before = dict(self.names)
        """The names when the journal began; what their files had then is `synced` of the nodes."""
        self.synced_names = dict(self.names)
        self._changes: list[NameChange] = []

    def _node(self, content: bytes) -> Node:
        return Node(next(self._numbers), synced=bytearray(content))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take the place of the system calls. One at a time in a process."""
        names = ("create", "lock", "write", "set_size", "sync", "close", "link", "rename", "unlink", "sync_folder")
        self._real = {name: getattr(system_calls, name) for name in names}
        for name in names:
            setattr(system_calls, name, getattr(self, f"_{name}"))
        try:
            yield
        finally:
            for name, function in self._real.items():
                setattr(system_calls, name, function)

    def durable(self, name: str) -> bytes | None:
        """Return what a file has after a power loss that takes all that it can take."""
        node = self.synced_names.get(name)
        return None if node is None else bytes(node.synced)

    def _watch(self, kind: str, length: int = 0) -> int:
        return length if self._watcher is None else self._watcher(kind, length)

    def _inside(self, *paths: Path) -> None:
        for path in paths:
            if path.parent != self._folder or path.name == BYSTANDER:
                raise Broken(f"a commit changes {path}")

    def _rename_in_journal(self, change: NameChange) -> None:
        change.apply(self.names)
        self._changes.append(change)
        self.journal.append(change)

    def _operate(self, descriptor: int, operation: Operation) -> None:
        node = self._files[descriptor]
        node.pending.append(operation)
        self.journal.append((node, operation))

    def _create(self, path: Path) -> int:
        self._inside(path)
        self._watch("create")
        descriptor: int = self._real["create"](path)
        node = self._files[descriptor] = self._node(b"")
        self._rename_in_journal(NameChange(path.name, node))
        return descriptor

    def _lock(self, descriptor: int) -> None:
        self._watch("lock")
        self._real["lock"](descriptor)

    def _write(self, descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        some = data[: self._watch("write", len(data))]
        if some and self._real["write"](descriptor, (some,), offset) != len(some):
            raise Broken("the folder for the proof is full")
        if some:
            self._operate(descriptor, Operation("write", offset, len(some), some))
        return len(some)

    def _set_size(self, descriptor: int, size: int) -> None:
        self._watch("size")
        self._real["set_size"](descriptor, size)
        self._operate(descriptor, Operation("size", 0, size))

    def _sync(self, descriptor: int) -> None:
        node = self._files[descriptor]
        try:
            self._watch("sync")
        except OSError:
            # As Linux does it: a later sync succeeds, and does not write what this one could not.
            node.pending.clear()
            raise
        for operation in node.pending:
            operation.apply(node.synced)
        node.pending.clear()
        self.journal.append((node, None))

    def _close(self, descriptor: int) -> None:
        # Also a close that fails has closed.
        self._real["close"](descriptor)
        self._watch("close")

    def _link(self, path: Path, new_path: Path) -> None:
        self._inside(path, new_path)
        self._watch("link")
        self._real["link"](path, new_path)
        self._rename_in_journal(NameChange(new_path.name, self.names[path.name]))

    def _rename(self, path: Path, new_path: Path) -> None:
        self._inside(path, new_path)
        self._watch("rename")
        self._real["rename"](path, new_path)
        self._rename_in_journal(NameChange(new_path.name, self.names[path.name], NameChange(path.name, None)))

    def _unlink(self, path: Path) -> None:
        self._inside(path)
        self._watch("unlink")
        self._real["unlink"](path)
        self._rename_in_journal(NameChange(path.name, None))

    def _sync_folder(self, folder: Path) -> None:
        if folder != self._folder:
            raise Broken(f"a commit syncs {folder}")
        self._watch("sync-names")
        for change in self._changes:
            change.apply(self.synced_names)
        self._changes.clear()
        self.journal.append(None)


def files_of(folder: Path) -> Files:
    """Return what gives the content of the files of a real folder."""

    def content(name: str) -> bytes | None:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            return None

    return content


def partial_names(folder: Path) -> list[str]:
    """Return the names of the temporary files in a folder."""
    return [path.name for path in folder.iterdir() if path.name.endswith(PARTIAL_SUFFIX)]


def require_next_run(overlay: Overlay, target: Target, folder: Path, new: Image) -> None:
    """Commit once more into a folder, and see that the image is right and nothing else is left; raises Broken."""
    with Recorder(folder).installed():
        overlay.commit(target, folder, replace=True)
    found = target.image(files_of(folder))
    # Which of its two names the second file has depends on what was there.
    if found is None or _without_names(found) != _without_names(new):
        raise Broken("the next run does not give the right image")
    wanted = {target.file_name, BYSTANDER, *(name for name, _ in found[1])}
    others = {path.name for path in folder.iterdir()} ^ wanted
    if others:
        raise Broken(f"after the next run there is, or is not, {', '.join(sorted(others))}")
    if (folder / BYSTANDER).read_bytes() != BYSTANDER.encode():
        raise Broken("another file was changed")


def _without_names(image: Image) -> tuple[bytes, list[bytes | None]]:
    return image[0].replace(b'-flat-2.vmdk"', b'-flat.vmdk"'), [content for _, content in image[1]]
