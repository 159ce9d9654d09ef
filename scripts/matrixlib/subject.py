"""A disk that the matrix converts, and an image that it leaves."""

from dataclasses import dataclass
from pathlib import Path

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Subject:
    """One disk to convert. `options` are what `diskfs convert` needs to open it.

    `raw` is its content as a file of exactly `size` bytes; without `raw`, reading it fails, and a conversion must say
    `failure`. `basis` says where the content comes from.
    """

    name: str
    source: Path
    options: tuple[str, ...]
    size: int
    sector_size: int = SECTOR
    raw: Path | None = None
    failure: str = ""
    basis: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """An image that is not converted, and why; `good` is false where that is not as it must be."""

    name: str
    why: str
    good: bool = True
