"""A file that is to be changed: its bytes where it has any, what its bytes mean, and how to put its checksums right."""

import functools
import random
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from construct import Struct

from tests.samples.vhdx_builder import SparseSource

PAGE = 4096
_DATA = re.compile(rb"[^\0]")


class Field(NamedTuple):
    """A number in a file; offset and width in bytes."""

    offset: int
    width: int
    byteorder: Literal["little", "big"] = "little"


class Table(NamedTuple):
    """A run of numbers of one width: a BAT, a grain table."""

    offset: int
    width: int
    entries: int
    byteorder: Literal["little", "big"] = "little"

    def entry(self, index: int) -> Field:
        """Return one number of the table."""
        return Field(self.offset + index * self.width, self.width, self.byteorder)


class Text(NamedTuple):
    """A run of text; offset and length in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What a mutator should know of a file. Places may lie outside of the file: they are ignored then."""

    fields: tuple[Field, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: tuple[Text, ...] = ()


MAX_FILLED = 1 << 20
"""Bytes by which a whole file is extended and stays whole."""


class Draft:
    """A file that is being changed: pieces at their offsets, zeroes elsewhere."""

    def __init__(self, pieces: Iterable[tuple[int, bytes | bytearray]], size: int) -> None:
        self.pieces: list[tuple[int, bytes | bytearray]] = sorted(pieces, key=lambda piece: piece[0])
        self.size = size

    @classmethod
    def of(cls, data: bytes) -> "Draft":
        """Return the draft of a whole file, its long runs of zeroes left out."""
        pieces: list[tuple[int, bytes]] = []
        at = 0
        while found := _DATA.search(data, at):
            start = found.start() // PAGE * PAGE
            end = start
            while end < len(data) and any(data[end : end + PAGE]):
                end += PAGE
            pieces.append((start, data[start:end]))
            at = end
        return cls(pieces, len(data))

    def copy(self) -> "Draft":
        """Return a draft whose changes do not show in this one."""
        return Draft([(offset, bytes(data)) for offset, data in self.pieces], self.size)

    @property
    def is_whole(self) -> bool:
        """Whether the pieces are one, from the start to the end."""
        return len(self.pieces) == 1 and self.pieces[0][0] == 0 and len(self.pieces[0][1]) == self.size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from one piece; zeroes for what lies outside of it."""
        for number in range(len(self.pieces)):
            start, data = self.pieces[number]
            if start <= offset < start + len(data):
                return bytes(data[offset - start : offset - start + length]).ljust(length, b"\0")
        return bytes(length)

    def write(self, offset: int, new: bytes) -> None:
        """Overwrite bytes inside one piece; what goes past it is left out."""
        for number, (start, data) in enumerate(self.pieces):
            if start <= offset < start + len(data):
                changed = data if isinstance(data, bytearray) else bytearray(data)
                at = offset - start
                count = min(len(new), len(changed) - at)
                changed[at : at + count] = new[:count]
                self.pieces[number] = (start, changed)
                return

    def number(self, place: Field) -> int:
        """Return a number of the file."""
        return int.from_bytes(self.read(place.offset, place.width), place.byteorder)

    def set_number(self, place: Field, value: int) -> None:
        """Overwrite a number, cut to its width."""
        self.write(place.offset, (value & (1 << 8 * place.width) - 1).to_bytes(place.width, place.byteorder))

    def resize(self, size: int) -> None:
        """Cut the file, or extend it by zeroes; by many, and they are a hole: a changed header can say any size."""
        size = max(size, 0)
        kept = [(start, data[: size - start]) for start, data in self.pieces if start < size]
        if self.is_whole and self.size < size <= self.size + MAX_FILLED:
            kept = [(0, bytes(self.pieces[0][1]).ljust(size, b"\0"))]
        self.pieces, self.size = kept, size

    def replace(self, data: bytes) -> None:
        """Become another whole file."""
        self.pieces, self.size = [(0, data)], len(data)

    def source(self, name: str) -> SparseSource:
        """Return the file as something to read, which counts its reads."""
        return SparseSource({offset: bytes(data) for offset, data in self.pieces}, self.size, name)

    def save(self, path: Path) -> None:
        """Write the file; its zeroes become holes."""
        with path.open("wb") as file:
            for offset, data in self.pieces:
                file.seek(offset)
                file.write(data[: max(self.size - offset, 0)])
            file.truncate(self.size)

    def __len__(self) -> int:
        return sum(len(data) for _, data in self.pieces)


@dataclass(frozen=True)
class Specimen:
    """A good file, and the files that lie beside it. With `opened`, it is itself beside the file that is opened."""

    name: str
    draft: Draft
    beside: Mapping[str, bytes] = field(default_factory=dict)
    opened: bytes = b""


@dataclass(frozen=True)
class Format:
    """What a campaign needs to know of one format. `driver` is None for what is no disk image."""

    name: str
    file_name: str
    specimens: Callable[[], Iterator[Specimen]]
    structure: Callable[[Draft], Structure]
    """Where the numbers of a file are, wherever its headers say."""
    mend: Callable[[Draft, random.Random], None] = lambda _draft, _chance: None
    """Put right every checksum that there is, and mostly what has to agree with another copy."""
    reshape: Callable[[Draft, random.Random], None] | None = None
    """A change that only makes sense for this format, such as a member that is there twice."""
    driver: str | None = None
    more_read: int = 0
    """Bytes that opening may read besides those that it may for every format."""
    changes: tuple[int, ...] = (1, 1, 1, 1, 2, 2, 4)
    """How many changes are made at once, each alike often."""


def fields_of(structure: Struct, at: int) -> list[Field]:
    """Return every number of a construct declaration at `at`; what is no number is cut into 4 bytes each."""
    return [Field(at + offset, width, byteorder) for offset, width, byteorder in _fields_of(structure)]


@functools.cache
def _fields_of(structure: Struct) -> list[Field]:
    found = []
    at = 0
    for part in structure.subcons:
        width = part.sizeof()
        code = getattr(getattr(part, "subcon", part), "fmtstr", "")
        if code and width in {1, 2, 4, 8}:
            found.append(Field(at, width, "big" if code[0] == ">" else "little"))
        elif part.name and width <= 64:
            found += [Field(at + start, min(4, width - start)) for start in range(0, width, 4)]
        at += width
    return found


def fields_in(table: Mapping[str, tuple[int, str]], at: int, byteorder: Literal["little", "big"]) -> list[Field]:
    """Return the numbers of a builder's table: field name -> offset and struct code."""
    found = []
    for offset, code in table.values():
        width = struct.calcsize("=" + code)
        if width in {1, 2, 4, 8}:
            found.append(Field(at + offset, width, byteorder))
    return found
