"""Reads a file of the corpus as a user does, with `diskfs cat` and through a mount, and says what came of it."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diskfs.disks.opening import OpenedDisk, OpenedSource, open_source
from diskfs_formats import errors
from diskfs_formats.errors import DiskfsError
from scripts.corpuslib.expectations import Digest, Expected, Refusal

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SECTOR = 512
PIECE = 1 << 20
HASHED = 1 << 30
"""Bytes up to which a disk is read without --hash-all; the larger ones of the corpus take minutes."""
SECONDS = 3600
"""A read that takes longer hangs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table. `good` is false where an image reads wrong, or is refused against expectation or not at
    all."""

    image: str
    format: str
    variant: str
    verdict: str
    good: bool

    def as_json(self) -> dict[str, Any]:
        """Return the row with its names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ways:
    """How to read, and how much."""

    mount: bool = True
    hash_all: bool = False

    @property
    def names(self) -> str:
        """The ways in words."""
        return "cat, mount" if self.mount else "cat"


@dataclass(frozen=True, slots=True)
class Subject:
    """One file of the corpus: what must come of it, where it is, the options it needs, how it is read."""

    expected: Expected
    location: Path
    options: list[str]
    ways: Ways

    def row(self, verdict: str, *, good: bool, kind: str = "-") -> Verdict:
        """Return the row of a file that shows no disk."""
        return Verdict(self.expected.row.path, kind, "-", verdict, good)

    def shortened(self, message: str) -> str:
        """Return a message without the folders of the machine that it was given on."""
        folder = str(self.location.parent)
        return message.removeprefix("diskfs: ").replace(f"{folder}/", "").replace(folder, "its folder")


def verdicts(expected: Expected, corpus: Path, ways: Ways) -> list[Verdict]:
    """Read every disk of one file of the corpus in every way, and compare."""
    # A guest's file system may look like another format: the manifest says that the file is a disk as it is.
    format_name = "raw" if expected.row.format.startswith("raw") and expected.row.sha256_content else None
    subject = Subject(expected, corpus / expected.row.path, ["--format", format_name] if format_name else [], ways)
    try:
        with open_source(str(subject.location), format_name=format_name) as opened:
            if all(disk.error for disk in opened.disks):
                return [_unopened(subject, opened)]
            return list(_disks(subject, opened))
    except DiskfsError as error:
        return [_refused(subject, error)]


def _unopened(subject: Subject, opened: OpenedSource) -> Verdict:
    """Return the verdict on an appliance none of whose disks opens."""
    kind, expected = opened.container or "-", subject.expected
    if opened.disks:
        error = opened.disks[0].error
        assert error is not None
        return _refused(subject, error, kind)
    # Files beside a descriptor need not be its own.
    if expected.refusal or (expected.digests and expected.row.format != "ovf"):
        return subject.row("WRONG: it shows no disk, which is not what is recorded", good=False, kind=kind)
    return subject.row("opens; an appliance without disk files", good=True, kind=kind)


def _refused(subject: Subject, error: DiskfsError, kind: str = "-") -> Verdict:
    """Compare an error that opening gave with the one that is expected, in every way of reading."""
    refusal, message = subject.expected.refusal, subject.shortened(str(error))
    if refusal is None or refusal.when != "open":
        wanted = "a digest is recorded" if subject.expected.digests else "no refusal is expected"
        return subject.row(f"WRONG: refused, and {wanted}: {message}", good=False, kind=kind)
    if not isinstance(error, getattr(errors, refusal.error)) or refusal.words not in str(error):
        return subject.row(f"WRONG: {type(error).__name__}, {_wanted(refusal)}: {message}", good=False, kind=kind)
    said = {"cat": _cat(subject, 0)[1]}
    if subject.ways.mount:
        said["mount"] = _refused_mount(subject)
    for way, line in said.items():
        if line != f"diskfs: {error}":
            differs = f"WRONG: {way} says {subject.shortened(line)!r}, opening {message!r}"
            return subject.row(differs, good=False, kind=kind)
    return subject.row(f"refused ({subject.ways.names}): {message}", good=True, kind=kind)


def _wanted(refusal: Refusal) -> str:
    return f"expected {refusal.error} about {refusal.words!r}"


def _disks(subject: Subject, opened: OpenedSource) -> Iterator[Verdict]:
    path, left = subject.expected.row.path, dict(subject.expected.digests)
    with contextlib.ExitStack() as mounts:
        mountpoint = mounts.enter_context(_mounted(subject)) if subject.ways.mount else None
        for disk in opened.disks:
            image = path if opened.container is None else f"{path}: {disk.file_name}"
            found = [key for key in (str(disk.index), disk.file_name.removesuffix(".gz")) if key in left]
            digest = left.pop(found[0]) if found else None
            if disk.error is not None:
                problem = f"WRONG: it does not open: {subject.shortened(str(disk.error))}"
                yield Verdict(image, "-", "-", problem, good=False)
                continue
            file = mountpoint / f"disk{disk.index}.raw" if mountpoint else None
            verdict, good = _read(subject, disk, digest, file)
            yield Verdict(image, disk.image.info.format, disk.image.info.variant, verdict, good)
    if subject.expected.row.format != "ovf":
        for key in left:
            yield Verdict(f"{path}: {key}", "-", "-", "WRONG: recorded, and not shown", good=False)


def _read(subject: Subject, disk: OpenedDisk, digest: Digest | None, file: Path | None) -> tuple[str, bool]:
    """Return the verdict on one disk that opens, and whether it is as expected."""
    refusal, size, names = subject.expected.refusal, disk.image.size, subject.ways.names
    if refusal is not None:
        if refusal.when == "open":
            return f"WRONG: it opens, {_wanted(refusal)}", False
        return _damaged(subject, refusal, disk, file)
    # qemu-img, whose digests these are, fills up the last sector of a raw file.
    padding = -size % SECTOR if digest and digest.size == size + -size % SECTOR else 0
    if digest is not None and digest.size is not None and digest.size != size + padding:
        return f"WRONG: {size} bytes, recorded are {digest.size}", False
    if file is not None and file.stat().st_size != size:
        return f"WRONG: {size} bytes, the mount shows {file.stat().st_size}", False
    if size > HASHED and not subject.ways.hash_all:
        return f"size ok; {size >> 30} GiB, which only --hash-all reads", True
    cat, message = _cat(subject, disk.index, padding)
    if message:
        return f"WRONG: cat fails: {subject.shortened(message)}", False
    found = {"cat": cat}
    if file is not None:
        try:
            found["mount"] = _sha256(file, padding)
        except OSError as error:
            return f"WRONG: the mount fails: {error}", False
    if digest is None:
        if len(set(found.values())) > 1:
            return "WRONG: cat and the mount differ", False
        return f"opens ({names}); nothing recorded", True
    for way, one in found.items():
        if one != digest.sha256:
            return f"WRONG: {way} gives {one}, recorded is {digest.sha256}", False
    return f"hash ok ({names})" + (f", with {padding} bytes of padding" if padding else ""), True


def _damaged(subject: Subject, refusal: Refusal, disk: OpenedDisk, file: Path | None) -> tuple[str, bool]:
    """Reading to the end must fail, for the reason given, in every way."""
    _, message = _cat(subject, disk.index)
    if refusal.words not in message:
        return f"WRONG: cat says {message!r}, {_wanted(refusal)}", False
    if file is not None:
        try:
            _sha256(file, 0)
        except OSError:
            pass
        else:
            return "WRONG: the mount reads it to the end", False
    return f"read error ({subject.ways.names}): {subject.shortened(message)}", True


def _environment() -> dict[str, str]:
    # This checkout, whatever is installed.
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'formats'}"}


def _diskfs(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "diskfs", *map(str, arguments)]


def _cat(subject: Subject, index: int, padding: int = 0) -> tuple[str, str]:
    """Return the digest of what `diskfs cat` gives, and its message, which is empty if it succeeds."""
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as messages:
        command = _diskfs("cat", "--disk", index, *subject.options, subject.location)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, env=_environment()) as process:
            assert process.stdout is not None
            while piece := process.stdout.read(PIECE):
                digest.update(piece)
        messages.seek(0)
        message = messages.read().decode(errors="replace").strip()
    if process.returncode and not message:
        message = f"exit code {process.returncode} and no message"
    digest.update(bytes(padding))
    return digest.hexdigest(), message if process.returncode else ""


def _refused_mount(subject: Subject) -> str:
    """Return the message with which a mount is refused; says so if it is not."""
    with tempfile.TemporaryDirectory(prefix="corpus-report-") as folder:
        result = subprocess.run(
            _diskfs("mount", *subject.options, subject.location, folder),
            capture_output=True, text=True, check=False, env=_environment(), timeout=SECONDS,
        )  # fmt: skip
        if result.returncode == 0:
            subprocess.run(_diskfs("umount", folder), check=True, env=_environment())
            return "nothing: it mounts"
        return result.stderr.strip()


@contextlib.contextmanager
def _mounted(subject: Subject) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corpus-report-") as folder:
        subprocess.run(
            _diskfs("mount", "--quiet", *subject.options, subject.location, folder),
            check=True,
            env=_environment(),
            timeout=SECONDS,
        )
        try:
            yield Path(folder)
        finally:
            subprocess.run(_diskfs("umount", folder), check=True, env=_environment(), timeout=SECONDS)


def _sha256(path: Path, padding: int) -> str:
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(bytes(padding))
    return digest.hexdigest()
