"""VHD: fixed, dynamic, differencing."""

import random
from collections.abc import Iterator
from uuid import UUID

from scripts.fuzzlib.formats import seeds
from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure, Table, Text, fields_in
from tests.samples import vhd_builder as vhd

_BLOCK = 4096
_SIZE = 24 * _BLOCK + 512
_FOOTER = 512
_HEADER = 1024
_COOKIE = b"conectix"
_MAX_LOCATOR = 1024


def _child() -> Specimen:
    parent_id = UUID(int=1)
    parent = vhd.filled(_SIZE, _BLOCK, unique_id=parent_id)[0].build()
    builder = vhd.VhdBuilder(_SIZE, _BLOCK, parent_id=parent_id, parent_name="parent.vhd")
    builder.locators = [
        (b"W2ku", "C:\\parent.vhd".encode("utf-16-le")),
        (b"W2ru", ".\\parent.vhd".encode("utf-16-le")),
        (b"MacX", b"file:///parent.vhd"),
    ]
    for number in (5, 0, 24, 7):
        builder.put(number, vhd.pattern(number, _BLOCK), None if number == 0 else range(number % 3, 8, 2))
    data = builder.build()
    return Specimen("differencing", Draft([(0, data)], len(data)), {"parent.vhd": parent})


def _specimens() -> Iterator[Specimen]:
    yield _child()
    yield seeds.whole("dynamic", vhd.filled(_SIZE, _BLOCK)[0].build())
    yield seeds.whole("dynamic, old footer", vhd.filled(_SIZE, _BLOCK, seed=2, footer_size=511)[0].build())
    yield seeds.whole("dynamic, spare entries", vhd.filled(_SIZE, 512, seed=3, spare_entries=100)[0].build())
    yield seeds.whole("fixed", vhd.fixed(vhd.pattern(1, 64 * 512)))
    yield from seeds.samples("vhd")
    yield from seeds.corpus(lambda row: row.format.startswith("vhd:"), max_size=8 << 20)


def _tail(draft: Draft) -> int:
    """Return where the footer at the end is."""
    return next((at for size in (512, 511) if draft.read(at := draft.size - size, 8) == _COOKIE), draft.size - _FOOTER)


def _header_at(draft: Draft, footer: int) -> int:
    at = draft.number(Field(footer + 16, 8, "big"))
    return at if at < draft.size else _FOOTER


def _structure(draft: Draft) -> Structure:
    tail = _tail(draft)
    fields = fields_in(vhd.FOOTER_FIELDS, tail, "big")
    tables: list[Table] = []
    texts: list[Text] = []
    if draft.read(0, 8) == _COOKIE:
        fields += fields_in(vhd.FOOTER_FIELDS, 0, "big")
        header = _header_at(draft, 0)
        fields += fields_in(vhd.HEADER_FIELDS, header, "big")
        texts.append(Text(header + 64, 512))
        for number in range(8):
            at = header + vhd.LOCATORS_AT + 24 * number
            if any(draft.read(at, 4)):
                fields += fields_in(vhd.LOCATOR_FIELDS, at, "big")
                place, length = draft.number(Field(at + 16, 8, "big")), draft.number(Field(at + 8, 4, "big"))
                texts.append(Text(place, min(length, _MAX_LOCATOR)))
        table = draft.number(Field(header + 16, 8, "big"))
        tables += [Table(table, 4, 32, "big")] * 3
        # Sector bitmaps: whichever blocks the first entries lead to.
        for number in range(3):
            bitmap = draft.number(Field(table + 4 * number, 4, "big")) * 512
            if bitmap < draft.size:
                tables.append(Table(bitmap, 1, 2))
    return Structure(tuple(fields), tuple(tables), tuple(texts))


def _mend(draft: Draft, chance: random.Random) -> None:
    """Both footers and the dynamic header get the right sums; mostly the footers agree."""
    tail = _tail(draft)
    head = draft.read(0, _FOOTER)
    if head.startswith(_COOKIE):
        header = _header_at(draft, 0)
        draft.write(header, vhd.with_checksum(draft.read(header, _HEADER), 36))
        head = vhd.with_checksum(head, 64)
        draft.write(0, head)
        if chance.random() < 0.7:
            draft.write(tail, head)
    if draft.read(tail, 8) == _COOKIE:
        footer = vhd.with_checksum(draft.read(tail, _FOOTER), 64)
        draft.write(tail, footer)


VHD = Format("vhd", "disk.vhd", _specimens, _structure, _mend, driver="vhd")
