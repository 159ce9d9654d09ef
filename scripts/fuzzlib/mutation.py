"""Changing a file where it hurts: its numbers at their extremes, tables, text, ends, and parts of other files."""

import random
import re
from collections.abc import Callable, Sequence

from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure

EXTREMES = (0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
BYTES = (0, 1, 0x7F, 0x80, 0xFF)
MAX_GROWTH = 70_000
"""Bytes by which a file may grow: more than any ending that is looked for."""
UNMENDED = 0.12
"""Share of files whose checksums are left as the changes have made them."""

TEXT_NAMES = (
    "/etc/passwd", "../x", "", ".", "..", "a/b", "C:\\x", "\\\\h\\s", "http://h/x", "json:{}", "x\0y", "x" * 300,
    "%2e%2e/x", "\x1b]0;x\x07", "a\u202egpj", "disk.vmdk", "%00", "/dev/zero",
)  # fmt: skip
TEXT_PIECES = (
    b"<a>", b"</a>", b"<!DOCTYPE a>", b"&#0;", b"&lt;", b"${x}", b'"', b"=", b"\n", b"\r", b"\t ", b"\0", b"\xff", b"-",
    b"#", b"9" * 25, b"RW ", b"ZERO", b"FLAT", b"\xc3\xa9", b"\xe2\x80\xae", b"<!--", b"encoding=\"utf-16\"",
)  # fmt: skip
_NUMBER = re.compile(rb"\d+")
_QUOTED = re.compile(rb'"[^"\n]*"')
_WORD = re.compile(rb"[A-Za-z]{2,}")

USUAL_SIZE = 16 << 10
"""Bytes of a good file up to which it is chosen as often as any; what is larger is hit where it matters more rarely."""

Change = Callable[[Draft, Structure, random.Random, Sequence[Specimen]], None]


def mutated(form: Format, specimens: Sequence[Specimen], chance: random.Random) -> tuple[Draft, Specimen]:
    """Return a changed file, and the good one that it was."""
    (specimen,) = chance.choices(specimens, [_weight(specimen) for specimen in specimens])
    draft = specimen.draft.copy()
    change(form, draft, specimens, chance)
    return draft, specimen


def _weight(specimen: Specimen) -> float:
    return USUAL_SIZE / max(len(specimen.draft), USUAL_SIZE)


def change(form: Format, draft: Draft, specimens: Sequence[Specimen], chance: random.Random) -> None:
    """Change a file, mostly once, and mostly mend its checksums."""
    for _ in range(chance.choice(form.changes)):
        if not draft.size or not draft.pieces:
            return
        if form.reshape is not None and chance.random() < 0.3:
            form.reshape(draft, chance)
            continue
        (chosen,) = chance.choices(_CHANGES, _WEIGHTS)
        chosen(draft, form.structure(draft), chance, specimens)
    if chance.random() >= UNMENDED:
        form.mend(draft, chance)


def _flip(draft: Draft, _structure: Structure, chance: random.Random, _specimens: Sequence[Specimen]) -> None:
    for _ in range(chance.choice((1, 1, 2, 6))):
        offset = _somewhere(draft, chance)
        old = draft.read(offset, 1)[0]
        new = chance.choice((*BYTES, old ^ 1 << chance.randrange(8), old + 1 & 0xFF, chance.randrange(256)))
        draft.write(offset, bytes([new]))


def _somewhere(draft: Draft, chance: random.Random) -> int:
    """Return the offset of a byte: of any piece alike, however long, and mostly near its beginning."""
    start, data = chance.choice(draft.pieces)
    length = min(len(data), chance.choice((256, 4096, len(data), len(data))))
    return start + chance.randrange(max(length, 1))


def _set_field(draft: Draft, structure: Structure, chance: random.Random, _specimens: Sequence[Specimen]) -> None:
    if structure.fields:
        place = chance.choice(structure.fields)
        draft.set_number(place, _value(draft, place, chance))


def _value(draft: Draft, place: Field, chance: random.Random) -> int:
    """Return an extreme, or something near what is there or near the size of the file."""
    top = 1 << 8 * place.width
    old = draft.number(place)
    kind = chance.randrange(6)
    if kind <= 1:
        return chance.choice((*(value for value in EXTREMES if value < top), top - 1, top - 2, top // 2))
    if kind == 2:
        return chance.choice((old + 1, old - 1, old * 2, old // 2, old ^ top // 2, ~old, old << 8, old + 512))
    if kind == 3:
        return 1 << chance.randrange(8 * place.width)
    if kind == 4:
        unit = chance.choice((1, 512, 4096, 1 << 20))
        return draft.size // unit + chance.choice((-2, -1, 0, 1))
    return chance.randrange(top)


def _set_entry(draft: Draft, structure: Structure, chance: random.Random, _specimens: Sequence[Specimen]) -> None:
    tables = [table for table in structure.tables if table.entries > 0]
    if not tables:
        return
    table = chance.choice(tables)
    near = min(table.entries, chance.choice((4, 64, table.entries)))
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = table.entry(chance.randrange(near))
        if chance.random() < 0.4:
            draft.set_number(place, draft.number(table.entry(chance.randrange(near))) + chance.choice((0, 0, 1, -1)))
        else:
            draft.set_number(place, _value(draft, place, chance))


def _splice(draft: Draft, _structure: Structure, chance: random.Random, specimens: Sequence[Specimen]) -> None:
    """Put a part of this file or another one over a part of this one."""
    other = draft if chance.random() < 0.5 else chance.choice(specimens).draft
    if not other.pieces:
        return
    unit = chance.choice((1, 4, 512))
    start = _somewhere(other, chance) // unit * unit
    length = chance.choice((1, 4, 8, 64, 512, 4096))
    place = start if chance.random() < 0.3 else _somewhere(draft, chance) // unit * unit
    draft.write(place, other.read(start, length))


def _shift(draft: Draft, _structure: Structure, chance: random.Random, _specimens: Sequence[Specimen]) -> None:
    """Insert or remove bytes, so that all that follows lies elsewhere."""
    if not draft.is_whole:
        return
    data = bytes(draft.pieces[0][1])
    at = chance.randrange(len(data))
    length = chance.choice((1, 4, 511, 512, 513))
    if chance.random() < 0.5:
        draft.replace(data[:at] + data[at + length :])
    else:
        draft.replace(data[:at] + chance.choice((bytes(length), data[at : at + length], b"\xff" * length)) + data[at:])


def _cut(draft: Draft, structure: Structure, chance: random.Random, _specimens: Sequence[Specimen]) -> None:
    if structure.fields and chance.random() < 0.2:
        draft.resize(chance.choice(structure.fields).offset + chance.choice((0, 1)))
    elif chance.random() < 0.6:
        draft.resize(draft.size - chance.choice((1, 2, 511, 512, 513, 1024, 4096)))
    else:
        draft.resize(chance.randrange(draft.size))


def _extend(draft: Draft, _structure: Structure, chance: random.Random, _specimens: Sequence[Specimen]) -> None:
    added = chance.choice((1, 511, 512, 513, 1024, 4096, MAX_GROWTH))
    filling = chance.choice((b"\0", b"\xff", b"tail"))
    if draft.is_whole and filling != b"\0":
        data = bytes(draft.pieces[0][1])
        more = data[-added:] if filling == b"tail" else filling * added
        draft.replace(data + more)
    else:
        draft.resize(draft.size + added)


def _edit(draft: Draft, structure: Structure, chance: random.Random, specimens: Sequence[Specimen]) -> None:
    """Change text; text that is all of the file may change its length."""
    if not structure.texts:
        _flip(draft, structure, chance, specimens)
        return
    text = chance.choice(structure.texts)
    old = draft.read(text.offset, min(text.length, 1 << 20))
    new = edited(old, chance)
    if draft.is_whole and text.offset == 0 and text.length >= draft.size:
        draft.replace(new)
    else:
        # What was read, and no more: a changed header can say that the text has many gigabytes.
        draft.write(text.offset, new[: len(old)].ljust(len(old), b"\n"))


def edited(text: bytes, chance: random.Random) -> bytes:
    """Return text with a number, a name, a word or a line changed."""
    kind = chance.randrange(8)
    if kind <= 2:
        pattern = (_NUMBER, _QUOTED, _WORD)[kind]
        found = list(pattern.finditer(text[:65536]))
        if found:
            match = chance.choice(found)
            return text[: match.start()] + _instead(kind, match[0], found, chance) + text[match.end() :]
    if kind <= 5:
        lines = text.split(b"\n")
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        if kind == 3:
            del lines[at]
        elif kind == 4:
            lines.insert(other, lines[at] * chance.choice((1, 1, 2)))
        else:
            lines[at], lines[other] = lines[other], lines[at]
        return b"\n".join(lines)
    at = chance.randrange(len(text) + 1)
    removed = chance.choice((0, 0, 1, 9))
    return text[:at] + chance.choice(TEXT_PIECES) + text[at + removed :]


def _instead(kind: int, old: bytes, found: Sequence[re.Match[bytes]], chance: random.Random) -> bytes:
    other = chance.choice(found)[0]
    if kind == 0:
        value = chance.choice((*EXTREMES, 10**19, 10**40, int(old[:30]) + 1, int(old[:30]) * 2))
        return chance.choice((b"%d" % value, b"-1", b"0x10", b"1.5", other))
    if kind == 1:
        return chance.choice((b'"' + chance.choice(TEXT_NAMES).encode() + b'"', other, old[:-1]))
    return chance.choice((other, old.swapcase(), old * 2, b""))


def _leave(_draft: Draft, _structure: Structure, _chance: random.Random, _specimens: Sequence[Specimen]) -> None:
    """Change nothing: the good file must stay good after mending."""


_CHANGES: tuple[Change, ...] = (_flip, _set_field, _set_entry, _splice, _shift, _cut, _extend, _edit, _leave)
_WEIGHTS = (24, 17, 26, 12, 2, 3, 4, 9, 3)
