"""Block devices: written in place, zeroes included."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from diskfs.errors import OutOfSpace, SinkError
from diskfs.sinks.positioned import sink_error, write_gathered, write_zero_bytes
from diskfs_formats.source import Buffer
from diskfs_formats.text import printable

_BLKZEROOUT = 0x127F
_UNALIGNED = 4096
"""What every device zeroes by itself is aligned to this much; the ends of a range are written."""


class DeviceSink:
    """Writes a block device from its start; what lies behind the image stays. A PositionedSink.

    A device has no old version to keep: a run that fails leaves it partly written, which `abort` cannot mend. Zeroes
    are made by the device where it can (BLKZEROOUT), else written. Raises OutOfSpace for a device that is too small,
    else SinkError.
    """

    keeps_old_bytes = True

    def __init__(self, path: Path) -> None:
        self._name = printable(str(path))
        self._path = path
        self._position = 0
        try:
            # O_EXCL keeps others, and their mounts, off the device; one that is mounted is refused.
            self._fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise SinkError(f"{self._name}: the device is in use (mounted, or part of another one)") from error
            raise sink_error(error, self._name, "opening the device") from error
        try:
            if not stat.S_ISBLK(os.fstat(self._fd).st_mode):
                raise SinkError(f"{self._name}: it is no block device")
            self._device_size = os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def name(self) -> str:
        """The device, for messages."""
        return self._name

    @property
    def path(self) -> Path:
        """Where the device is."""
        return self._path

    def write(self, data: Buffer, /) -> None:
        self.set_size(self._position + len(data))
        self.write_at(self._position, (data,))
        self._position += len(data)

    def write_zeroes(self, length: int, /) -> None:
        self.set_size(self._position + length)
        self.write_zeroes_at(self._position, length)
        self._position += length

    def set_size(self, size: int, /) -> None:
        if size > self._device_size:
            raise OutOfSpace(
                f"{self._name}: the image needs {size} bytes, the device has {self._device_size}: choose a larger one"
            )

    def write_at(self, offset: int, buffers: Sequence[Buffer], /) -> None:
        write_gathered(self._fd, offset, buffers, self._name)

    def write_zeroes_at(self, offset: int, length: int, /) -> None:
        end = offset + length
        first, last = -(-offset // _UNALIGNED) * _UNALIGNED, end // _UNALIGNED * _UNALIGNED
        if first >= last:
            write_zero_bytes(self._fd, offset, length, self._name)
            return
        write_zero_bytes(self._fd, offset, first - offset, self._name)
        try:
            fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("=QQ", first, last - first))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                raise sink_error(error, self._name, f"zeroing {last - first} bytes at offset {first:#x}") from error
            write_zero_bytes(self._fd, first, last - first, self._name)
        write_zero_bytes(self._fd, last, end - last, self._name)

    def flush(self) -> None:
        """Have everything on the device."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise sink_error(error, self._name, "writing the last bytes to the device") from error

    def commit(self) -> None:
        self.flush()
        self._close()

    def abort(self) -> None:
        self._close()

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)
