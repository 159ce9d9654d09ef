"""Kills the daemon of a mounted overlay under writers, at random moments, and looks at what every sector holds then.

Each writer owns stripes of three sectors, so that neighbours write into the same blocks. A sector that was written
carries its number, a serial number and a checksum: what is found is one of the contents that were issued, or torn. What
an fsync has acknowledged must be there, or something that was issued later.
"""

import contextlib
import ctypes
import json
import os
import random
import select
import signal
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diskfs.cli.main import main as run_diskfs
from diskfs.disks.overlay import OverlayFolder
from scripts.overlaylib.mounted_model import SECTOR, make_source

START = 63
"""The first sector of the first partition; those before it stay."""
STRIPE = 3
STRIPES = 600
WRITERS = 3
LONGEST = 0.5
"""Seconds that the writers have before the kill, at most."""
_HEAD = struct.Struct("<QQI")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PUNCH_HOLE_KEEP_SIZE = 3


class Lost(Exception):
    """A sector holds what it must not."""


def sector_content(number: int, serial: int) -> bytes:
    """Return what is written to a sector: its number, the serial number, a checksum, and bytes made of both."""
    rest = random.Random(number << 32 | serial).randbytes(SECTOR - _HEAD.size)
    return _HEAD.pack(number, serial, zlib.crc32(rest, number ^ serial)) + rest


@dataclass
class Counts:
    """What was done and seen."""

    kills: int = 0
    writes: int = 0
    syncs: int = 0
    sectors: int = 0
    newer: int = 0
    """Sectors that held more than was acknowledged."""


@dataclass
class _Writer:
    """One writer: for each of its sectors the contents that may be found, the oldest first."""

    number: int
    path: Path
    base: int
    allowed: dict[int, list[bytes]]
    chosen: random.Random
    writes: int = 0
    syncs: int = 0
    serial: int = 0
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Write until the mount is gone."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except OSError:
            return
        try:
            while True:
                if self.chosen.random() < 0.15:
                    before = {sector: len(contents) for sector, contents in self.allowed.items() if len(contents) > 1}
                    os.fsync(descriptor)
                    for sector, count in before.items():
                        # All that was issued before the fsync is replaced by the last of it.
                        del self.allowed[sector][: count - 1]
                    self.syncs += 1
                else:
                    self._change(descriptor)
        except OSError:
            return  # The mount was killed.
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _change(self, descriptor: int) -> None:
        stripe = self.chosen.randrange(STRIPES // WRITERS) * WRITERS + self.number
        first = START + stripe * STRIPE + self.chosen.randrange(STRIPE)
        count = self.chosen.randrange(1, START + (stripe + 1) * STRIPE - first + 1)
        offset, length = first * SECTOR - self.base, count * SECTOR
        self.serial += 1
        discard = self.chosen.random() < 0.1
        contents = [
            bytes(SECTOR) if discard else sector_content(sector, self.serial) for sector in range(first, first + count)
        ]
        for sector, content in zip(range(first, first + count), contents, strict=True):
            self.allowed[sector].append(content)
        if discard:
            arguments = (ctypes.c_int64(offset), ctypes.c_int64(length))
            if _LIBC.fallocate64(descriptor, _PUNCH_HOLE_KEEP_SIZE, *arguments):
                raise OSError(ctypes.get_errno(), "fallocate")
        elif os.pwrite(descriptor, b"".join(contents), offset) != length:
            self.wrong.append(f"a write of {length} bytes at {offset:#x} was cut short")
        self.writes += 1


class KilledMount:
    """A source, its overlay, and what each sector may hold."""

    def __init__(self, folder: Path, seed: str) -> None:
        self._folder = folder
        self._seed = seed
        self._chosen = random.Random(f"{seed} kills")
        self._image, content = make_source(folder, seed)
        self._mountpoint = folder / "mnt"
        self._mountpoint.mkdir()
        sectors = range(START, START + STRIPES * STRIPE)
        self._known = {sector: bytes(content[sector * SECTOR : (sector + 1) * SECTOR]) for sector in sectors}
        self._rest = bytes(content[(START + STRIPES * STRIPE) * SECTOR :])
        self._serial = 0
        self.counts = Counts()

    def run(self, kills: int) -> Iterator[int]:
        """Kill `kills` times; yields how often so far. Raises Lost."""
        try:
            for number in range(kills):
                self._round(number)
                yield number + 1
            self._mount("at the end")
            self._compare("at the end", {sector: [content] for sector, content in self._known.items()})
            if self._command("umount", self._mountpoint):
                raise Lost(f"seed {self._seed}: unmounting failed at the end")
        finally:
            subprocess.run(["fusermount3", "-u", "-z", self._mountpoint], check=False, capture_output=True)

    def _round(self, number: int) -> None:
        where = f"seed {self._seed}, kill {number}"
        pid = self._mount(where)
        writers = []
        for index in range(WRITERS):
            name, base = ("disk0.raw", 0) if index % 2 else ("disk0p1.raw", START * SECTOR)
            allowed = {
                sector: [content]
                for sector, content in self._known.items()
                if (sector - START) // STRIPE % WRITERS == index
            }
            chosen = random.Random(f"{where} {index}")
            writers.append(_Writer(index, self._mountpoint / name, base, allowed, chosen, serial=self._serial))
        threads = [threading.Thread(target=writer.run) for writer in writers]
        for thread in threads:
            thread.start()
        time.sleep(self._chosen.random() * LONGEST)
        handle = os.pidfd_open(pid)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        for thread in threads:
            thread.join()
        # Its locks go when it has ended, which takes the kernel a moment.
        select.select([handle], [], [])
        os.close(handle)
        for writer in writers:
            if writer.wrong:
                raise Lost(f"{where}: {writer.wrong[0]}")
            self.counts.writes += writer.writes
            self.counts.syncs += writer.syncs
            self._serial = max(self._serial, writer.serial)
        for finding in OverlayFolder.check(self._folder / "overlay"):
            raise Lost(f"{where}: overlay-check: {finding.message}")
        self._mount(where)
        self._compare(where, {sector: contents for writer in writers for sector, contents in writer.allowed.items()})
        self.counts.kills += 1

    def _compare(self, where: str, allowed: dict[int, list[bytes]]) -> None:
        with open(self._mountpoint / "disk0.raw", "rb") as file:  # noqa: PTH123 - as the writers do
            file.seek(START * SECTOR)
            found = file.read(STRIPES * STRIPE * SECTOR)
            if file.read() != self._rest:
                raise Lost(f"{where}: bytes changed that nobody wrote to")
        for sector, contents in allowed.items():
            start = (sector - START) * SECTOR
            content = found[start : start + SECTOR]
            if content not in contents:
                raise Lost(
                    f"{where}: sector {sector} holds none of the {len(contents)} contents that it may hold; it begins "
                    f"with {content[:20].hex()}, the last that was acknowledged with {contents[0][:20].hex()}"
                )
            self.counts.newer += content != contents[0]
            self.counts.sectors += 1
            self._known[sector] = content

    def _mount(self, where: str) -> int:
        """Mount unless it is mounted and alive; returns the daemon's process."""
        status = self._status()
        if status is None:
            if self._command("mount", "--overlay", self._folder / "overlay", self._image, self._mountpoint):
                raise Lost(f"{where}: the next mount failed")
            status = self._status()
        if status is None:
            raise Lost(f"{where}: the new mount does not answer")
        return status

    def _status(self) -> int | None:
        try:
            with open(self._mountpoint / ".diskfs.json", "rb") as file:  # noqa: PTH123 - its name is not listed
                return int(json.load(file)["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def _command(self, *words: object) -> int:
        """Run the command in a forked process, which need not load anything again."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run_diskfs([str(word) for word in words])
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
