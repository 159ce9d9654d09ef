"""Errors of the file system at random points of a conversion: it is full (ENOSPC), reading or writing fails (EIO).

Of each the command has to say one line with the error in it and exit with 1; the target has to be absent or the old
one, and no temporary file may be left.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.soaklib.conversion import Conversion, Tally, digest_of
from tests.servers.faulty_folder import faulty_folder, set_fault

FAULTS = ("full", "read", "write", "sync")
MESSAGES = {
    "full": os.strerror(errno.ENOSPC), **dict.fromkeys(("read", "write", "sync"), os.strerror(errno.EIO))
}  # fmt: skip
PAGE = 4096


def fault_points(fault: str, what: Conversion, points: int, chance: random.Random) -> Tally:
    """Have a fault happen at `points` random points of a conversion to a file that is called as `what`'s target; say
    what came of them.

    `full` mounts a tmpfs of a random size, for which it needs to be root, the others a FUSE file system of our own.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        folder = Path(scratch)
        # What is written depends on the target's name.
        whole = replace(what, target=folder / what.target.name)
        result = whole.run("--json")
        if result.returncode:
            raise RuntimeError(f"the conversion fails without a fault: {result.stderr}")
        written, digest = json.loads(result.stdout)["bytes_written"], digest_of(whole.target)
        whole.target.unlink()
        with (_full if fault == "full" else _failing)(folder, fault, what) as conversion:
            conversion.digest = digest
            trial = _Trial(conversion, fault, folder / "control", Tally())
            for number in range(points):
                at = chance.randrange(what.source.stat().st_size if fault == "read" else written)
                trial.try_at(at, old=number % 2 == 1)
            trial.try_without()
        return trial.tally


@dataclass(frozen=True, slots=True)
class _Trial:
    conversion: Conversion
    fault: str
    control: Path
    tally: Tally

    def try_at(self, at: int, *, old: bool) -> None:
        """Have the fault happen after `at` bytes."""
        conversion = self.conversion
        conversion.prepare(old=False)
        if self.fault == "full":
            # A tmpfs takes whole pages; the old target has one of them.
            _mount_tmpfs(conversion.target.parent, "remount", at // PAGE * PAGE + PAGE)
        conversion.prepare(old=old)
        if self.fault != "full":
            set_fault(self.control, "fsync" if self.fault == "sync" else self.fault, 0 if self.fault == "sync" else at)
        result = conversion.run()
        if self.fault != "full":
            set_fault(self.control, "nothing", 0)
        outcome = conversion.outcome(old=old)
        problems = []
        where = f"{self.fault} at {at}, {conversion.target.suffix[1:]}"
        if result.returncode != 1 or outcome not in ("absent", "old"):
            problems.append(f"{where}: exit code {result.returncode}, the target is {outcome}")
        if result.stderr.count("\n") != 1 or MESSAGES[self.fault] not in result.stderr:
            problems.append(f"{where}: it says {result.stderr!r}")
        if left := conversion.partial_files():
            problems.append(f"{where}: it leaves {left}")
        self.tally.add(outcome, problems)

    def try_without(self) -> None:
        """Without the fault it has to succeed in the same folder, and leave nothing but the target."""
        if self.fault == "full":
            _mount_tmpfs(self.conversion.target.parent, "remount", 1 << 40)
        result = self.conversion.run()
        if result.returncode or self.conversion.outcome(old=False) != "new" or self.conversion.partial_files():
            self.tally.add("", [f"after {self.fault}: {result.stderr!r}, {self.conversion.partial_files()}"])


@contextlib.contextmanager
def _full(folder: Path, _fault: str, what: Conversion) -> Iterator[Conversion]:
    small = folder / "small"
    small.mkdir()
    _mount_tmpfs(small, "rw", PAGE)
    try:
        yield replace(what, target=small / what.target.name)
    finally:
        subprocess.run(["umount", small], check=True)


def _mount_tmpfs(folder: Path, option: str, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{option},size={size}", "none", folder], check=True)


@contextlib.contextmanager
def _failing(folder: Path, fault: str, what: Conversion) -> Iterator[Conversion]:
    mountpoint, behind, out = folder / "mnt", folder / "behind", folder / "out"
    for each in (mountpoint, behind, out):
        each.mkdir()
    if fault == "read":
        shutil.copyfile(what.source, behind / what.source.name)
    with faulty_folder(mountpoint, behind, folder / "control"):
        if fault == "read":
            yield replace(what, source=mountpoint / what.source.name, target=out / what.target.name)
        else:
            yield replace(what, target=mountpoint / what.target.name)
