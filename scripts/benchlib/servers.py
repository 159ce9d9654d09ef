"""The programs that show an image as a mounted raw file: diskfs and its peers.

Each is a context manager that yields the file, ready to be read, and leaves neither mount nor process behind.
"""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchlib.commands import BenchError, missing_program, run

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 0.02

Server = Callable[[], AbstractContextManager[Path]]


@contextlib.contextmanager
def diskfs_mount(diskfs: Path, image: Path, *options: str | Path) -> Iterator[Path]:
    """Mount with `diskfs mount`, which goes into the background when the file is there."""
    with _mountpoint_folder() as folder, contextlib.ExitStack() as stack:
        stack.callback(_unmount, folder, [diskfs, "umount", folder])
        run([diskfs, "mount", *options, image, folder], grace_seconds=START_TIMEOUT_SECONDS)
        yield _existing(folder / "disk0.raw")


@contextlib.contextmanager
def qemu_export(image: Path, image_format: str) -> Iterator[Path]:
    """Export over FUSE with qemu-storage-daemon, which mounts on a file and stays in the foreground."""
    with _mountpoint_folder() as folder, contextlib.ExitStack() as stack:
        mountpoint = folder / "disk.raw"
        mountpoint.touch()
        stack.callback(mountpoint.unlink)
        stack.callback(_unmount, mountpoint, ["fusermount3", "-u", mountpoint])
        blockdev = f"driver=file,node-name=file,read-only=on,filename={_qemu_value(image)}"
        format_layer = f"driver={image_format},node-name=disk,read-only=on,file=file"
        export = f"type=fuse,id=export,node-name=disk,writable=off,mountpoint={_qemu_value(mountpoint)}"
        command = ["qemu-storage-daemon", "--blockdev", blockdev, "--blockdev", format_layer, "--export", export]
        process = stack.enter_context(_running(command))
        _wait_for(lambda: _is_mounted(mountpoint), process)
        yield mountpoint


@contextlib.contextmanager
def qemu_overlay(image: Path, image_format: str, overlay: Path) -> Iterator[Path]:
    """Export a new qcow2 overlay of an image over FUSE, writable."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.absolute(), "-F", image_format, overlay])
    with _mountpoint_folder() as folder, contextlib.ExitStack() as stack:
        mountpoint = folder / "disk.raw"
        mountpoint.touch()
        stack.callback(mountpoint.unlink)
        stack.callback(_unmount, mountpoint, ["fusermount3", "-u", mountpoint])
        file = f"driver=file,node-name=file,filename={_qemu_value(overlay)}"
        disk = "driver=qcow2,node-name=disk,file=file"
        export = f"type=fuse,id=export,node-name=disk,writable=on,mountpoint={_qemu_value(mountpoint)}"
        command = ["qemu-storage-daemon", "--blockdev", file, "--blockdev", disk, "--export", export]
        process = stack.enter_context(_running(command))
        _wait_for(lambda: _is_mounted(mountpoint), process)
        yield mountpoint


@contextlib.contextmanager
def vmdkmount(image: Path) -> Iterator[Path]:
    """Mount with vmdkmount of libvmdk, which goes into the background when the file is there."""
    with _mountpoint_folder() as folder, contextlib.ExitStack() as stack:
        stack.callback(_unmount, folder, ["fusermount3", "-u", folder])
        run(["vmdkmount", image, folder], grace_seconds=START_TIMEOUT_SECONDS)
        yield _existing(folder / "vmdk1")


@contextlib.contextmanager
def _mountpoint_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="diskfs-bench-"))
    try:
        yield folder
    finally:
        folder.rmdir()  # Not the whole tree: if unmounting failed, the tree is somebody's disk.


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            raise missing_program(command[0], error) from error
        try:
            yield process
        except BenchError as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            raise BenchError(f"{error}: {said}" if said else str(error)) from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_ready():
        if process.poll() is not None:
            raise BenchError(f"{process.args!r}: ended with status {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise BenchError(f"{process.args!r}: not ready after {START_TIMEOUT_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


def _unmount(mountpoint: Path, command: list[str | Path]) -> None:
    """Unmount politely, else lazily, which always works and ends the server as well."""
    if not _is_mounted(mountpoint):
        return
    try:
        run(command)
    except BenchError:
        run(["fusermount3", "-u", "-z", mountpoint])
        raise


def _is_mounted(path: Path) -> bool:
    """Tell whether `path`, a file or a folder, is a mount of its own; also true if its server died."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except OSError:
        return True


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise BenchError(f"{path}: not there although the mount succeeded")
    return path


def _qemu_value(path: Path) -> str:
    return str(path).replace(",", ",,")
