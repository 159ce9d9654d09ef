"""The life of a mount: opening the source, serving until a signal or an unmount, and going away cleanly."""

import contextlib
import functools
import gc
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyfuse3
import trio

from diskfs.allocator import keep_freed_buffers
from diskfs.disks.opening import OpenedSource, open_source
from diskfs.disks.overlay import SourceOptions
from diskfs.errors import MountError
from diskfs.fuse.bridge import Reader
from diskfs.fuse.changing import Changes, changeable
from diskfs.fuse.fallocate import Fallocate
from diskfs.fuse.layout import build_tree
from diskfs.fuse.operations import DiskfsOperations
from diskfs.fuse.session_gate import Session, fuse_descriptors
from diskfs.fuse.writing import WritableOperations
from diskfs.sources.locate import stop_fetching
from diskfs.sources.locations import RemoteOptions, is_url
from diskfs_formats.text import printable

log = logging.getLogger("diskfs.fuse")

GC_THRESHOLD = (700, 10, 10)
"""Python's own: a failed read leaves its buffers to the collector, and nothing else here makes garbage."""
MAX_WAITING = 192
"""Reads that the kernel keeps under way. With its default of 12, as many that hang at a remote source stop all others,
also those that are answered from memory."""
END_NOTICED_AFTER = 0.3
"""Seconds after which a mount of a remote source notices that it was taken down while reads hang."""
READAHEAD_KB = 1024
"""The kernel's readahead window for cached reads. Its default of 128 KiB makes eight requests of what one can do; only
root may change it."""
_FOR_MOUNT_ALONE = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "relatime", "rw"}
)
_FOR_OTHERS = ("x-", "comment=", "fsname=", "subtype=")
"""Options that mount(8) and systemd read in fstab, and names that are ours to give; none is for the kernel."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount; `extra` are options for mount(8), as they are."""

    format_name: str | None = None
    parents: tuple[str, ...] = ()
    allow_missing_parent: bool = False
    allow_other: bool = False
    extra: tuple[str, ...] = ()
    remote: RemoteOptions = field(default_factory=RemoteOptions)
    changes: Changes = field(default_factory=Changes)

    @property
    def how_opened(self) -> SourceOptions:
        """How the source is opened, as far as it may be stored."""
        return SourceOptions.of(
            format_name=self.format_name,
            parents=self.parents,
            allow_missing_parent=self.allow_missing_parent,
            remote=self.remote,
        )


def serve(location: str, mountpoint: Path, options: MountOptions, ready: Callable[[list[str]], None]) -> None:
    """Open `location`, mount it, call `ready` with the warnings when the files are there, and serve until the end.

    Returns after a clean unmount, by a signal or from outside. Raises DiskfsError if it cannot start. If serving
    fails, the mountpoint is left behind dead, so that nobody takes the folder beneath it for the disk. What was
    written is durable when it returns.
    """
    keep_freed_buffers()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_EndingSignals())
        opened = stack.enter_context(
            open_source(
                location,
                format_name=options.format_name,
                parents=options.parents,
                allow_missing_parent=options.allow_missing_parent,
                remote=options.remote,
            )
        )
        opened.require_a_disk()
        written = stack.enter_context(changeable(opened, options.changes, options.how_opened, mountpoint))
        warnings = [f"disk{disk.index}: {disk.error}" for disk in opened.disks if disk.error]
        tree = build_tree(opened, written, in_place=options.changes.in_place)
        is_remote = is_url(opened.location)
        # Reads that hang must leave room for others: in threads, in the kernel and among the session's workers.
        reader = Reader(MAX_WAITING, decode_ahead=False) if is_remote else Reader()
        kind = WritableOperations if written else DiskfsOperations
        about = {"source": opened.name, "mountpoint": str(mountpoint), "writable": bool(written)}
        operations = kind(tree, reader, status=opened.status, about=about)
        # What is loaded stays, and what is garbage from now on goes soon, however a command started.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        # Nothing of ours may keep a folder busy, or lie under the mount itself.
        os.chdir("/")
        before = fuse_descriptors()
        signals.hold()
        try:
            pyfuse3.init(operations, str(mountpoint), _fuse_options(opened, options))
        except RuntimeError as error:
            raise MountError(
                f"{printable(str(mountpoint))}: mounting failed ({error}); is /dev/fuse there and may you use it?"
            ) from error
        announced = cleanly = False

        def announce() -> None:
            nonlocal announced
            ready(warnings)
            announced = True

        try:
            serving = functools.partial(_serve, operations, signals, is_remote=is_remote)
            trio.run(serving, mountpoint, fuse_descriptors() - before, announce)
            cleanly = True
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            # A mount that nobody was told of must not stay behind, dead.
            try:
                pyfuse3.close(unmount=cleanly or not announced)
            finally:
                reader.close()


async def _serve(
    operations: DiskfsOperations,
    signals: "_EndingSignals",
    mountpoint: Path,
    descriptors: set[int],
    ready: Callable[[], None],
    *,
    is_remote: bool = False,
) -> None:
    session = Session(descriptors)
    async with trio.open_nursery() as nursery:
        if isinstance(operations, WritableOperations):
            handle = operations.fallocate
            discards = Fallocate(
                lambda inode, mode, offset, length, reply: nursery.start_soon(
                    handle, inode, mode, offset, length, reply
                )
            )
            discards.install_at_first_request()
        nursery.start_soon(_end_on_signal, signals, session)
        nursery.start_soon(_announce, mountpoint, ready)
        if is_remote:
            nursery.start_soon(_stop_fetching_at_the_end, list(descriptors))
        await session.serve()
        nursery.cancel_scope.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what went wrong first, out of the groups that trio wraps it in."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _end_on_signal(signals: "_EndingSignals", session: Session) -> None:
    with trio.open_signal_receiver(*signals.numbers) as received:
        if signals.came:
            session.end()
        async for number in received:
            log.info("%s: unmounting", signal.Signals(number).name)
            # Once more is harmless; a second signal must not end the process before it has unmounted.
            session.end()
            stop_fetching()


class _EndingSignals:
    """The signals that end a mount. Once held, none of them ends the process by itself, until this is left: not
    before the event loop listens, and not while what was written becomes durable and the mount goes away.
    """

    def __init__(self) -> None:
        # Whoever ignores SIGHUP (nohup) wants to outlive the terminal.
        self.numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self.came = False
        """Whether one came that the event loop was not told of."""
        self._before: dict[signal.Signals, Any] = {}

    def hold(self) -> None:
        """Let the signals do nothing but to be noted. Call it from the main thread."""
        for number in self.numbers:
            self._before[number] = signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


async def _stop_fetching_at_the_end(descriptors: list[int]) -> None:
    """Fail the reads that wait for the network once the mount is gone: else its end would wait for those that hang."""
    poller = select.poll()
    for descriptor in descriptors:
        # No event but the error that the kernel reports when the connection is closed.
        poller.register(descriptor, 0)
    while not poller.poll(0):  # noqa: ASYNC110 - only the session's workers may wait at the descriptor
        await trio.sleep(END_NOTICED_AFTER)
    stop_fetching()


async def _announce(mountpoint: Path, ready: Callable[[], None]) -> None:
    # Our own mount must be touched from a thread only: the event loop has to answer meanwhile.
    await trio.to_thread.run_sync(_prepare_for_users, mountpoint, abandon_on_cancel=True)
    ready()


def _prepare_for_users(mountpoint: Path) -> None:
    """Wait until the mount answers, and widen the kernel's readahead where that is permitted."""
    try:
        device = os.stat(mountpoint).st_dev  # noqa: PTH116 - a plain system call on our own mount
    except OSError as error:
        log.warning("the new mount does not answer: %s", error.strerror)
        return
    with contextlib.suppress(OSError):
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        bdi.write_text(f"{READAHEAD_KB}\n")
    with contextlib.suppress(OSError):
        # Belongs to whoever mounts; missing in containers without the control file system of FUSE (fusectl).
        Path(f"/sys/fs/fuse/connections/{os.minor(device)}/max_background").write_text(f"{MAX_WAITING}\n")


def _fuse_options(opened: OpenedSource, options: MountOptions) -> set[str]:
    # /proc/mounts shows the name to every user: the file's own name, never where it lies.
    shown = printable(opened.name, 100).replace(",", "_").replace("\\", "_") or "diskfs"
    access = "rw" if options.changes.is_any else "ro"
    chosen = {"default_permissions", access, "nosuid", "nodev", "noatime", f"fsname={shown}", "subtype=diskfs"}
    if options.allow_other:
        chosen.add("allow_other")
    extra = {word for word in options.extra if word not in _FOR_MOUNT_ALONE and not word.startswith(_FOR_OTHERS)}
    # The user's word goes before ours; two that contradict each other would be decided by chance.
    contradicted = {default for default in chosen for word in extra if _opposite(word) == default}
    return chosen - contradicted | extra


def _opposite(option: str) -> str:
    if option in ("ro", "rw"):
        return "rw" if option == "ro" else "ro"
    return option.removeprefix("no") if option.startswith("no") else f"no{option}"


def set_up_logging(handler: logging.Handler, *, verbose: bool = False) -> None:
    """Send what the mount logs to `handler`, with control characters escaped."""
    handler.setFormatter(_EscapingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("diskfs")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)


class _EscapingFormatter(logging.Formatter):
    """Keeps the lines of a traceback apart and escapes everything else that is no plain character."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line, 2000) for line in super().format(record).split("\n"))


def log_handler(log_file: Path | None, *, background: bool) -> logging.Handler:
    """Return where a mount logs to: the file asked for, standard error, or the system's log once in the background."""
    if log_file is not None:
        return logging.FileHandler(log_file, encoding="utf-8")
    if not background:
        return logging.StreamHandler(sys.stderr)
    if Path("/dev/log").exists():
        from logging.handlers import SysLogHandler  # noqa: PLC0415 - it loads socket, which few mounts need

        handler = SysLogHandler("/dev/log")
        handler.ident = "diskfs: "
        return handler
    return logging.NullHandler()
