"""What every bar needs to know of the run it is part of."""

from dataclasses import dataclass
from pathlib import Path

from benchlib.commands import BenchError
from benchlib.dataset import DataSet

SHORT_RUNS = 4
"""Measurements of a few milliseconds are repeated this many times as often as the others."""


@dataclass(frozen=True, slots=True)
class Context:
    """The program measured, its data, and how often and how long to measure."""

    diskfs: Path
    data: DataSet
    pairs: int
    random_seconds: float

    @property
    def short_pairs(self) -> int:
        return self.pairs * SHORT_RUNS

    @property
    def interpreter(self) -> list[str]:
        """The words of the first line of the diskfs script: the interpreter that runs it."""
        with self.diskfs.open("rb") as script:
            line = script.readline(4096)
        words = line.removeprefix(b"#!").decode(errors="replace").split()
        if not line.startswith(b"#!") or "python" not in Path(words[-1]).name:
            raise BenchError(f"{self.diskfs}: begins with {line[:32]!r}, expected #! and a Python interpreter")
        return words
