"""A conversion that something goes wrong with, and what it may leave behind."""

import hashlib
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

OLD = b"old"
PARTIAL_SUFFIX = ".diskfs-part"
SECONDS = 300
"""A conversion that takes longer hangs."""


@dataclass
class Conversion:
    """A conversion of `source` to `target`, by a program, and the digest of what it writes if nothing goes wrong."""

    program: Sequence[str | Path]
    source: Path
    target: Path
    digest: str = ""
    environment: Mapping[str, str] | None = None

    @property
    def command(self) -> list[str]:
        """The command; it may replace the target, and writes the same bytes each time."""
        options = ("--reproducible", "--force", "--quiet")
        return [*map(str, self.program), "convert", str(self.source), str(self.target), *options]

    def prepare(self, *, old: bool) -> None:
        """Put an old target there, or none."""
        self.target.unlink(missing_ok=True)
        if old:
            self.target.write_bytes(OLD)

    def run(self, *further: str) -> "subprocess.CompletedProcess[str]":
        """Run it to its end, with further options."""
        command = [*self.command, *further]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SECONDS, env=self.environment
        )

    def outcome(self, *, old: bool) -> str:
        """Say what the target is: absent, old, new, or WRONG."""
        if not self.target.exists():
            return "WRONG" if old else "absent"
        if self.target.stat().st_size == len(OLD):
            return "old" if old and self.target.read_bytes() == OLD else "WRONG"
        return "new" if digest_of(self.target) == self.digest else "WRONG"

    def partial_files(self) -> list[str]:
        """The temporary files beside the target."""
        return [path.name for path in self.target.parent.iterdir() if path.name.endswith(PARTIAL_SUFFIX)]


@dataclass
class Tally:
    """What became of the target at many points, and what was wrong, in words."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, outcome: str, problems: Sequence[str]) -> None:
        """Count one point."""
        self.outcomes["WRONG" if problems else outcome] += 1
        self.wrong += problems

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
