"""What tests of several folders share: comparing bytes, and the corpus of real images."""

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diskfs_formats.source import Buffer

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""
STORED_CORPUS = ROOT.parent / "shared" / "corpus"
"""The corpus as it is kept, packed; the fixture `corpus` gives it unpacked."""
MANIFEST = STORED_CORPUS / "MANIFEST.tsv"
SHOWN = 16
"""Bytes that are shown from the first difference on."""


def assert_same_bytes(actual: Buffer, expected: Buffer) -> None:
    """Compare what may be megabytes; the message names the first difference instead of showing all bytes."""
    if actual == expected:
        return
    offset = first_difference(actual, expected)
    end = offset + SHOWN
    raise AssertionError(
        f"first difference at offset {offset:#x}: found {bytes(actual[offset:end]).hex(' ') or 'the end'}, "
        f"expected {bytes(expected[offset:end]).hex(' ') or 'the end'} ({len(actual)} bytes, expected {len(expected)})"
    )


def first_difference(one: Buffer, other: Buffer) -> int:
    """Return the offset of the first byte in which two unequal buffers differ, or where the shorter one ends."""
    a, b = memoryview(one).cast("B"), memoryview(other).cast("B")
    same, differing = 0, min(len(a), len(b))
    if a[:differing] == b[:differing]:
        return differing
    while differing - same > 1:
        middle = (same + differing) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            differing = middle
    return same


def sha256_of(pieces: Iterable[Buffer]) -> str:
    """Return the SHA-256 of all pieces, in lower-case hexadecimal digits as in the manifest."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One image of the corpus. Sizes in bytes; None where the manifest says nothing.

    A member of an appliance has a row and no file of its own. A disk without data (`nonzero_64k_chunks` is 0) proves
    little: a reader that returns zeroes passes it.
    """

    path: str
    stored: str
    size: int
    format: str
    virtual_size: int | None
    sha256_file: str
    sha256_content: str | None
    content_by: str
    nonzero_64k_chunks: int | None
    licence: str
    origin: str
    hostile: bool
    notes: str

    @property
    def is_member(self) -> bool:
        """Whether the image lies inside an appliance, `path` being `APPLIANCE.d/MEMBER`."""
        return self.stored.startswith("(")

    @property
    def has_data(self) -> bool:
        """Whether the disk holds anything but zeroes."""
        return bool(self.nonzero_64k_chunks)


def corpus_rows() -> list[CorpusRow]:
    """Return the corpus's manifest, for `parametrize`; empty where there is no corpus beside the repository."""
    if not MANIFEST.exists():
        return []
    with MANIFEST.open(newline="", encoding="utf-8") as file:
        return [_row(values) for values in csv.DictReader(file, delimiter="\t")]


def _row(values: dict[str, str]) -> CorpusRow:
    return CorpusRow(
        path=values["path"],
        stored=values["stored"],
        size=int(values["bytes"]),
        format=values["format"],
        virtual_size=_number(values["virtual_size"]),
        sha256_file=values["sha256_file"],
        sha256_content=values["sha256_content"] or None,
        content_by=values["content_by"],
        nonzero_64k_chunks=_number(values["nonzero_64k_chunks"]),
        licence=values["licence"],
        origin=values["origin"],
        hostile=values["hostile"] == "yes",
        notes=values["notes"],
    )


def _number(text: str) -> int | None:
    return int(text) if text else None
