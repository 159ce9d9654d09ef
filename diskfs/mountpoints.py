"""Mountpoints as the system shows them: which are ours, which are dead, who keeps them busy, and taking them down.

Needs neither trio nor pyfuse3, so that `umount` and `mounts` start at once.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskfs.errors import MountError
from diskfs_formats.text import printable

FILE_SYSTEM_TYPE = "fuse.diskfs"
STATUS_NAME = ".diskfs.json"
"""A file of the root folder that is not listed: what the mount is, for `diskfs mounts` and `diskfs umount`."""
_MAX_LINKS = 40
"""Links in a row that Linux follows."""
_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
ANSWER_TIMEOUT = 2.0
"""Seconds after which a mount counts as one that does not answer."""
MAX_STATUS = 1 << 16
"""Bytes of the status that are looked at; it has a few hundred."""
EXIT_TIMEOUT = 30.0
"""Seconds that unmounting waits for the daemon to end; it has at most a few reads to finish."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo that is ours."""

    mountpoint: Path
    source: str
    device: str


def unescape(field: str) -> str:
    """Undo the octal escapes of /proc (space, tab, newline, backslash)."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(field))
    return os.fsdecode(raw)


def mounts() -> list[Mount]:
    """Return the mounts of diskfs that this process can see, oldest first."""
    found = []
    # Split at line feeds alone: the kernel escapes those in names, and not what else Python takes for a line's end.
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n"):
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if rest.startswith(f"{FILE_SYSTEM_TYPE} ") and len(parts) > 4:
            found.append(Mount(Path(unescape(parts[4])), unescape(rest.split(" ")[1]), parts[2]))
    return found


def mount_at(mountpoint: Path) -> Mount | None:
    """Return the topmost mount of diskfs at this path."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def resolved(mountpoint: Path) -> Path:
    """Return the absolute path, links followed, without touching what may be a dead mount at its end."""
    path = mountpoint.absolute()
    for _ in range(_MAX_LINKS):
        path = path.resolve() if path.name in {"", ".."} else path.parent.resolve() / path.name
        try:
            # Reading the link asks the folder that it lies in; a mountpoint itself is no link.
            path = path.parent / os.readlink(path)  # noqa: PTH115 - as above
        except OSError:
            return path
    return path


def is_dead(mountpoint: Path) -> bool:
    """Tell whether the daemon behind a mount is gone; waits for one that is just being killed.

    Raises MountError if there is no answer.
    """
    answer = _probe_in_time(mountpoint)
    if answer is None:
        raise MountError(
            f"{printable(str(mountpoint))}: the mount there does not answer; end its process (kill -9), then unmount it"
        )
    return answer in _DEAD


def _probe_in_time(mountpoint: Path) -> int | None:
    """Return what `_probe` returns, or None if that takes too long."""
    answer: list[int] = []
    asker = threading.Thread(target=lambda: answer.append(_probe(mountpoint)), daemon=True)
    asker.start()
    asker.join(ANSWER_TIMEOUT)
    return answer[0] if answer else None


def _probe(mountpoint: Path) -> int:
    """Return 0 or the errno of a request that no cache of the kernel can answer."""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def read_status(mount: Mount) -> dict[str, Any] | None:
    """Return the mount's own account of itself; None if it is dead, does not answer, or does not let us look."""
    answer: list[dict[str, Any]] = []

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError), (mount.mountpoint / STATUS_NAME).open("rb") as file:
            found = json.loads(file.read(MAX_STATUS))
            if isinstance(found, dict):
                answer.append(found)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(ANSWER_TIMEOUT)
    return answer[0] if answer else None


def state(mount: Mount) -> str:
    """Return `active`, `stale` (the daemon is gone), `hidden` (it is another user's) or `silent` (no answer)."""
    answer = _probe_in_time(mount.mountpoint)
    if answer is None:
        return "silent"
    return {0: "active", errno.EACCES: "hidden"}.get(answer, "stale")


@contextlib.contextmanager
def claimed(mountpoint: Path) -> Iterator[int]:
    """Hold a mountpoint while it is being mounted on; raises MountError if another `diskfs mount` holds it.

    Gives the descriptor that holds it, which a forked process must close.
    """
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{printable(str(mountpoint))}: it cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MountError(f"{printable(str(mountpoint))}: another diskfs mount is under way there") from error
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def prepare(mountpoint: Path) -> Path:
    """Return the mountpoint's resolved path, repaired if a dead mount of ours lies on it.

    Raises MountError unless it is then an empty folder.
    """
    shown = printable(str(mountpoint))
    path = resolved(mountpoint)
    while is_dead(path):
        if mount_at(path) is None:
            raise MountError(f"{shown}: a dead mount of another file system lies on it; unmount that first")
        take_down(path, lazily_if_busy=True)
    try:
        names = os.listdir(path)  # noqa: PTH208 - only the first name matters, and errors are told apart
    except FileNotFoundError as error:
        raise MountError(f"{shown}: there is no such folder; create it first") from error
    except NotADirectoryError as error:
        raise MountError(f"{shown}: it is not a folder") from error
    except OSError as error:
        raise MountError(f"{shown}: it cannot be read: {error.strerror}") from error
    if mount := mount_at(path):
        raise MountError(f"{shown}: {printable(mount.source)} is mounted there already; diskfs umount {shown}")
    if names:
        raise MountError(f"{shown}: the folder is not empty; files under a mount would be hidden")
    return path.resolve()


def take_down(mountpoint: Path, *, lazily_if_busy: bool = False) -> None:
    """Unmount; raises MountError with the holders if the mount is busy."""
    result = _fusermount(mountpoint)
    if result.returncode and lazily_if_busy:
        result = _fusermount(mountpoint, "-z")
    if result.returncode:
        who = list(holders(mountpoint))
        busy = f"; kept busy by {', '.join(who)}" if who else ""
        reason = printable(result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "unknown reason")
        raise MountError(f"{printable(str(mountpoint))}: it cannot be unmounted: {reason}{busy}")


def _fusermount(mountpoint: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["fusermount3", "-u", *options, "--", str(mountpoint)],
            capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise MountError("fusermount3 is not installed; install the package fuse3") from error


def unmount(mountpoint: Path) -> None:
    """Unmount a mount of ours, active or stale, and wait until its daemon has ended; raises MountError."""
    path = resolved(mountpoint)
    mount = mount_at(path)
    if mount is None:
        raise MountError(f"{printable(str(mountpoint))}: no diskfs mount is there")
    status = None if is_dead(mount.mountpoint) else read_status(mount)
    writable = bool(status and status.get("writable"))
    if writable:
        _flush(mount.mountpoint)
    take_down(mount.mountpoint)
    if status and isinstance(status.get("pid"), int) and not _wait_for_exit(status["pid"]) and writable:
        raise MountError(
            f"{printable(str(mountpoint))}: it is unmounted, but its process {status['pid']} has not ended after "
            f"{EXIT_TIMEOUT:.0f} s; until it has, the overlay is in use"
        )


def _flush(mountpoint: Path) -> None:
    """Have a mount make everything durable, and learn whether it could; raises MountError, and it stays mounted then.

    Unmounting itself tells nobody of an error.
    """
    for file in sorted(mountpoint.glob("disk*.raw")):
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise MountError(
                f"{printable(str(file))}: what was written could not be made durable: {error.strerror}; it is still "
                f"mounted: make room where the changes go and try again, or give up with fusermount3 -u"
            ) from error


def _wait_for_exit(pid: int) -> bool:
    """Wait for a process that is not our child, without polling where the kernel can tell; False if it goes on."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        import select  # noqa: PLC0415 - needed here alone

        return bool(select.select([handle], [], [], EXIT_TIMEOUT)[0])
    finally:
        os.close(handle)


def holders(mountpoint: Path) -> Iterator[str]:
    """Yield who keeps files under the mountpoint in use: loop devices, then processes, as far as we may see."""
    prefix = str(mountpoint) + "/"
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            name = unescape(backing.read_text(errors="surrogateescape").rstrip("\n")).removesuffix(" (deleted)")
            if name.startswith(prefix):
                yield f"/dev/{backing.parts[-3]} ({printable(name)})"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_leads_inside(link, str(mountpoint), prefix) for link in _links(process)):
                command = printable((process / "comm").read_text(errors="replace").strip(), 40)
                yield f"process {process.name} ({command})"


def _links(process: Path) -> Iterator[Path]:
    yield process / "cwd"
    yield process / "root"
    with contextlib.suppress(OSError):
        yield from (process / "fd").iterdir()


def _leads_inside(link: Path, mountpoint: str, prefix: str) -> bool:
    try:
        target = os.readlink(link)  # noqa: PTH115 - a string is compared, and it need not be a path
    except OSError:
        return False
    return target == mountpoint or target.startswith(prefix)
