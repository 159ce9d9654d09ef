"""Converts a disk to every variant that is written, and has each judged."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diskfs_formats.registry import WRITERS
from scripts.matrixlib.judging import Wrong, diskfs, judge, judge_appliance
from scripts.matrixlib.subject import Left, Subject
from scripts.matrixlib.subjects import subjects

VARIANTS = (*((entry.name, variant) for entry in WRITERS for variant in entry.variants), ("ova", "streamOptimized"))
LIMITS = {
    # What a format cannot hold is refused by name.
    "0 bytes": ("vmdk", "vhd", "vhdx", "ova"),
    "2040 GiB and a sector, sparse": ("vhd",),
}
LIMIT_WORDS = {"0 bytes": "has at least one sector", "2040 GiB and a sector, sparse": "write vhdx"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    image: str
    variant: str
    verdict: str
    good: bool

    def as_json(self) -> dict[str, Any]:
        """Return the row with its names."""
        return asdict(self)


def rows(name: str, corpus: Path | None, scratch: Path, largest: int) -> list[Row]:
    """Convert every disk of one name; for an appliance of several, all of them together too."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory(dir=scratch, prefix="matrix-") as folder:
        made = Path(folder) / "made"
        made.mkdir()
        disks: list[Subject] = []
        for subject in subjects(name, corpus, made, largest):
            if isinstance(subject, Left):
                found.append(Row(subject.name, "-", subject.why, subject.good))
                continue
            disks.append(subject)
            found += _of_disk(subject, Path(folder) / "out")
        if len(disks) > 1 and all(disk.raw for disk in disks):
            found.append(_together(name, disks, Path(folder) / "out"))
    return found


def _together(name: str, disks: list[Subject], out: Path) -> Row:
    with _empty(out), _empty(out.with_name("unpacked")) as unpacked:
        target = out / "disk.ova"
        code, said = diskfs("convert", "--quiet", disks[0].source, target)
        try:
            if code:
                raise Wrong(f"convert: {said}")
            return Row(name, "ova, all disks", judge_appliance(disks, target, unpacked), good=True)
        except Wrong as error:
            return Row(name, "ova, all disks", f"WRONG: {error}", good=False)


def _of_disk(subject: Subject, out: Path) -> Iterator[Row]:
    for format_name, variant in VARIANTS:
        shown = format_name if format_name in ("raw", "ova") else f"{format_name} {variant}"
        with _empty(out), _empty(out.with_name("unpacked")) as unpacked:
            target = out / f"disk.{format_name}"
            try:
                verdict = _converted(subject, format_name, variant, target, unpacked)
            except Wrong as error:
                yield Row(subject.name, shown, f"WRONG: {error}", good=False)
            else:
                yield Row(subject.name, shown, verdict, good=True)


def _converted(subject: Subject, format_name: str, variant: str, target: Path, unpacked: Path) -> str:
    code, said = diskfs(
        "convert", "--quiet", *subject.options, "-O", format_name, "--variant", variant, subject.source, target
    )
    odd = subject.name.removeprefix("odd: ")
    limit = LIMIT_WORDS[odd] if format_name in LIMITS.get(odd, ()) else ""
    if wanted := subject.failure or limit:
        left = [path.name for path in target.parent.iterdir()]
        if code != 1 or wanted not in said or "\n" in said or left:
            raise Wrong(f"expected {wanted!r} and nothing left: exit code {code}, {said!r}, left {left}")
        return f"fails as it must: {wanted}" if subject.failure else f"refused by name: {said.split(': ')[-1]}"
    if code:
        raise Wrong(f"convert: {said}")
    if format_name == "ova":
        return judge_appliance([subject], target, unpacked)
    return judge(subject, format_name, variant, target)


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[Path]:
    """A new folder, removed with what is in it."""
    folder.mkdir()
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
