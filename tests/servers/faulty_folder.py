"""A folder as a FUSE file system that passes everything on to another folder, and fails with EIO when it is told to.

Run as a program in a process of its own: `faulty_folder MOUNTPOINT FOLDER CONTROL`. The file CONTROL says what is to
fail, and its text may change at any time: `read N` and `write N`: every read, or write, once N bytes have passed in
that direction since the text was changed, and after a failed write fsync too; `fsync 0`: fsync alone; `nothing 0`.
Files are not cached by the kernel, so that every read and write comes here.
"""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import trio

FAULTS = ("nothing", "read", "write", "fsync")
PROGRAM = "faulty_folder"


class FaultyFolder(pyfuse3.Operations):
    """One folder without folders in it. Inodes are those of the files that lie behind."""

    enable_writeback_cache = False

    def __init__(self, folder: Path, control: Path) -> None:
        super().__init__()
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._control = control
        self._text = ""
        self._fault, self._budget, self._failed = "nothing", 0, False
        self._names: dict[int, bytes] = {}
        self._open: dict[int, int] = {}

    def _pass(self, direction: str, length: int = 0) -> None:
        """Let an operation pass, or raise EIO for it."""
        text = self._control.read_text()
        if text != self._text:
            self._text = text
            self._fault, budget = text.split()
            self._budget, self._failed = int(budget), False
        if direction == self._fault:
            self._budget -= length
            self._failed = self._failed or self._budget < 0 or direction == "fsync"
        if self._failed and (direction == self._fault or (direction, self._fault) == ("fsync", "write")):
            raise pyfuse3.FUSEError(errno.EIO)

    def _attributes(self, status: os.stat_result, name: bytes | None = None) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        is_root = name is None and status.st_ino == os.fstat(self._folder).st_ino
        found.st_ino = pyfuse3.InodeT(pyfuse3.ROOT_INODE if is_root else status.st_ino)
        if name is not None:
            self._names[status.st_ino] = name
        for key in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_mtime_ns", "st_ctime_ns"):
            setattr(found, key, getattr(status, key))
        found.st_blksize = 4096
        found.entry_timeout = found.attr_timeout = 0
        return found

    def _status(self, inode: int) -> os.stat_result:
        if inode == pyfuse3.ROOT_INODE:
            return os.fstat(self._folder)
        with _errors():
            if inode in self._names:
                return os.stat(self._names[inode], dir_fd=self._folder, follow_symlinks=False)
            # It was unlinked, and somebody has it open.
            for descriptor in self._open.values():
                if os.fstat(descriptor).st_ino == inode:
                    return os.fstat(descriptor)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: object = None) -> pyfuse3.EntryAttributes:
        return self._attributes(self._status(inode))

    async def setattr(
        self, inode: pyfuse3.InodeT, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None, ctx: object,
    ) -> pyfuse3.EntryAttributes:  # fmt: skip
        with _errors():
            if fields.update_size:
                os.truncate(self._open[fh] if fh is not None else self._path(inode), attr.st_size)
        return self._attributes(self._status(inode))

    def _path(self, inode: int) -> str:
        return f"/proc/self/fd/{self._folder}/{os.fsdecode(self._names[inode])}"

    async def lookup(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        with _errors():
            return self._attributes(os.stat(name, dir_fd=self._folder, follow_symlinks=False), name)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: object) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for number, name in enumerate(sorted(os.listdir(self._folder))):
            if number < start_id:
                continue
            status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if not pyfuse3.readdir_reply(
                token, os.fsencode(name), self._attributes(status, os.fsencode(name)), number + 1
            ):
                return

    def _opened(self, descriptor: int) -> pyfuse3.FileInfo:
        self._open[descriptor] = descriptor
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(descriptor), direct_io=True)

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: object) -> pyfuse3.FileInfo:
        with _errors():
            return self._opened(os.open(self._path(inode), flags & (os.O_ACCMODE | os.O_TRUNC)))

    async def create(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, flags: int, ctx: object
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        with _errors():
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | flags & os.O_EXCL, mode, dir_fd=self._folder)
        return self._opened(descriptor), self._attributes(os.fstat(descriptor), name)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        self._pass("read", size)
        with _errors():
            return os.pread(fh, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        self._pass("write", len(buf))
        with _errors():
            return os.pwrite(fh, buf, off)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        self._pass("fsync")

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        os.close(self._open.pop(fh))

    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: object) -> None:
        with _errors():
            inode = os.stat(name, dir_fd=self._folder).st_ino
            os.unlink(name, dir_fd=self._folder)
        if self._names.get(inode) == name:
            del self._names[inode]

    async def link(
        self, inode: pyfuse3.InodeT, new_parent_inode: pyfuse3.InodeT, new_name: bytes, ctx: object
    ) -> pyfuse3.EntryAttributes:
        with _errors():
            os.link(self._names[inode], new_name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            return self._attributes(os.stat(new_name, dir_fd=self._folder), new_name)

    async def rename(  # noqa: PLR0917 - the library's signature
        self, parent_inode_old: pyfuse3.InodeT, name_old: bytes, parent_inode_new: pyfuse3.InodeT, name_new: bytes,
        flags: int, ctx: object,
    ) -> None:  # fmt: skip
        with _errors():
            os.rename(name_old, name_new, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._names[os.stat(name_new, dir_fd=self._folder).st_ino] = name_new

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        found = pyfuse3.StatvfsData()
        status = os.statvfs(self._folder)
        for key in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(found, key, getattr(status, key))
        return found

    async def forget(self, inode_list: object) -> None:
        pass


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno or errno.EIO) from error


@contextlib.contextmanager
def faulty_folder(mountpoint: Path, folder: Path, control: Path) -> Iterator[None]:
    """Mount `folder` on `mountpoint`, both of which are there, until the block ends."""
    control.write_text("nothing 0")
    command = [sys.executable, str(Path(__file__).resolve()), str(mountpoint), str(folder), str(control)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{PROGRAM}: it did not mount: exit code {process.poll()}")
            time.sleep(0.02)
        yield
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=False, capture_output=True)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def set_fault(control: Path, fault: str, after: int) -> None:
    """Say what fails from now on, and after how many bytes."""
    assert fault in FAULTS
    # In one step: the other process reads it at any time.
    new = control.with_suffix(".new")
    # Spaces make a text that was given before another one.
    new.write_text(f"{fault} {after}{' ' * (time.monotonic_ns() % 1000)}")
    new.rename(control)


def main() -> None:
    """Mount, and serve until the mount ends."""
    mountpoint, folder, control = map(Path, sys.argv[1:4])
    pyfuse3.init(FaultyFolder(folder, control), str(mountpoint), {"fsname=faulty", "subtype=faulty"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
