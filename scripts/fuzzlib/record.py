"""What campaigns have come to so far: one line of JSON for each part of one, so that it can go on another day."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from scripts.fuzzlib.campaign import Tally
from scripts.fuzzlib.specimen import Specimen

PART = 25_000
"""Runs after which a campaign is noted down: less than that is lost when it is stopped."""


@dataclass(frozen=True, slots=True)
class Part:
    """A number of runs, one after the other."""

    format: str
    seed: str
    first: int
    runs: int
    passed: int
    slowest: float
    """Seconds of processor time."""
    growth: int
    """Bytes."""
    seconds: float
    findings: int
    specimens: str
    """What the good files were called and how long they were, as a hash: with others, the same run is another file."""

    @property
    def end(self) -> int:
        """The first run that was not done."""
        return self.first + self.runs


def part_of(tally: Tally, seed: str, first: int, specimens: Sequence[Specimen]) -> Part:
    """Return what is noted down of a campaign."""
    return Part(
        tally.format,
        seed,
        first,
        tally.runs,
        tally.passed,
        round(tally.slowest, 3),
        max(tally.growth, 0),
        round(tally.seconds, 1),
        sum(tally.counts.values()),
        fingerprint(specimens),
    )


def fingerprint(specimens: Sequence[Specimen]) -> str:
    """Return 12 digits that tell sets of good files apart."""
    names = sorted(f"{specimen.name}\0{len(specimen.draft)}\0{specimen.draft.size}" for specimen in specimens)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def append(path: Path, part: Part) -> None:
    """Note one part down; what was noted before stays, whatever happens to the machine meanwhile."""
    with path.open("a") as file:
        # A line that was cut off is ended, so that it spoils no other one.
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        file.write(json.dumps(asdict(part)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def parts(path: Path) -> Iterator[Part]:
    """Yield all that was noted; a last line that is cut off is as if it had not been."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        yield Part(**{field.name: values[field.name] for field in fields(Part)})


def next_run(path: Path, form: str, seed: str) -> int:
    """Return the first run of a seed that was not done."""
    return max((part.end for part in parts(path) if (part.format, part.seed) == (form, seed)), default=0)


def table(path: Path) -> str:
    """Return all campaigns as a table of Markdown, one row for a format and seed."""
    rows: dict[tuple[str, str], list[Part]] = {}
    for part in parts(path):
        rows.setdefault((part.format, part.seed), []).append(part)
    lines = ["| format | seed | runs | past header | slowest | growth | findings |", "|---|---|---|---|---|---|---|"]
    for (form, seed), found in rows.items():
        runs = sum(part.runs for part in found)
        share = sum(part.passed for part in found) / runs if runs else 0
        lines.append(
            f"| {form} | {seed} | {runs:,} | {share:.1%} | {max(part.slowest for part in found) * 1000:.0f} ms "
            f"| {max(part.growth for part in found) / (1 << 20):.1f} MiB | {sum(part.findings for part in found)} |"
        )
    return "\n".join(lines)
