"""From what a user typed to a target."""

import os
import re
import stat
import sys
from pathlib import Path

from diskfs.errors import SinkError
from diskfs.sinks.device import DeviceSink
from diskfs.sinks.file import FileSink
from diskfs.sinks.pipe import PipeSink
from diskfs.sinks.positioned import sink_error
from diskfs_formats.text import printable

STANDARD_OUTPUT = "-"
_S3 = re.compile(r"s3://", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_s3(target: str) -> bool:
    """Tell whether a target is an object in S3; `s3_multipart` writes it."""
    return _S3.match(target) is not None


def target_status(target: str) -> os.stat_result | None:
    """Return the status of what a target leads to, links followed; None if there is nothing yet."""
    try:
        return os.fstat(sys.stdout.fileno()) if target == STANDARD_OUTPUT else Path(target).stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SinkError(f"{printable(target)}: it cannot be written: {getattr(error, 'strerror', error)}") from error


def require_readable(target: str) -> None:
    """Raise SinkError for a target that can only be written; before it is opened, which waits for a FIFO's reader."""
    status = target_status(target)
    if status is not None and (stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        raise SinkError(
            f"{printable(target)}: what went into a pipe cannot be read back; leave --verify out, or write a file"
        )


def open_target(target: str, *, replace: bool = False) -> FileSink | PipeSink | DeviceSink:
    """Open a target: `-`, a path of a file that need not be there, a block device, a FIFO or character device.

    Without `replace`, a file that is there is refused, and so is every block device. Raises SinkError.
    """
    if target == STANDARD_OUTPUT:
        return PipeSink(os.dup(sys.stdout.fileno()), "standard output")
    if _URL.match(target):
        raise SinkError(
            f"{printable(target.partition('?')[0])}: nothing can be written there; use a path or s3://BUCKET/KEY"
        )
    status = target_status(target)
    name = printable(target)
    if status is None or stat.S_ISREG(status.st_mode):
        return FileSink(Path(target), replace=replace)
    if stat.S_ISBLK(status.st_mode):
        if not replace:
            raise SinkError(f"{name}: it is a block device, and what is on it would be lost; use --force to write it")
        return DeviceSink(Path(target))
    if stat.S_ISDIR(status.st_mode):
        raise SinkError(f"{name}: it is a directory, expected the name of a file")
    if not (stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        raise SinkError(f"{name}: it is neither a file, a pipe nor a device")
    try:
        return PipeSink(os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY), name)
    except OSError as error:
        raise sink_error(error, name, "opening it") from error
