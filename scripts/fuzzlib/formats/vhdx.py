"""VHDX: dynamic, differencing, and with a log that is to be replayed."""

import random
import struct
from collections.abc import Iterator
from uuid import UUID

import google_crc32c

from diskfs_formats.vhdx import structures
from diskfs_formats.vhdx.log import MAX_LOG_LENGTH
from scripts.fuzzlib.formats import seeds
from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure, Table, Text, fields_of
from tests.samples import vhdx_builder as vhdx
from tests.samples.vhdx_builder import KIB, LOG_GUID, MIB, VhdxBuilder, Zeros, pack_log_entry, pattern

_PARENT_ID = UUID("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
_HEADERS = (64 * KIB, 128 * KIB)
_REGIONS = (192 * KIB, 256 * KIB)
_REGION_TABLE = 64 * KIB
_KEPT = 4096
"""Bytes of a block that are kept; the rest of it is zero, so that a file is small."""
_MAX_LOG_ENTRY = 64 * KIB
_BAT_SHOWN = 16


def _specimen(name: str, builder: VhdxBuilder, beside: dict[str, bytes] | None = None) -> Specimen:
    pieces: dict[int, bytes] = {}
    found, size = builder.all_pieces()
    for offset, data in found.items():
        if offset == MIB and builder.log_guid == LOG_GUID:
            # Of the log, what is not zero, and one page more to grow into.
            data = data.rstrip(b"\0").ljust(-(-len(data.rstrip(b"\0")) // 4096 + 1) * 4096, b"\0")  # noqa: PLW2901
        is_block = offset >= builder.bat_offset + builder.bat_length
        pieces[offset] = data[:_KEPT] if is_block else data
    return Specimen(name, Draft(pieces.items(), size), beside or {})


def _dynamic(**choices: object) -> VhdxBuilder:
    builder = VhdxBuilder(6 * MIB, **choices)  # type: ignore[arg-type]  # a plain table of keywords
    builder.put(0, pattern(0))
    builder.set_state(1, vhdx.ZERO)
    builder.put(4, pattern(4))
    return builder


def _child(*, log: bool) -> VhdxBuilder:
    """Return a child with a partial block, and with a log of two entries if `log`."""
    locator = vhdx.locator_for(_PARENT_ID, ".\\p.vhdx", "v\\q.vhdx")
    builder = VhdxBuilder(6 * MIB, locator=locator, log_guid=LOG_GUID if log else vhdx.ZERO_GUID)
    builder.put(0, pattern(0))
    builder.put(1, pattern(1), vhdx.PARTIALLY_PRESENT)
    builder.put_bitmap(0, range(2048, 3000))
    if log:
        late = builder.put(3, pattern(3))
        update = builder.bat_sector({})
        del builder.bat[3]
        builder.write_log(
            (0, pack_log_entry([update, Zeros(late + MIB - 4096, 4096)], sequence_number=1, tail=0)),
            (8192, pack_log_entry([update], sequence_number=2, tail=0)),
        )
    return builder


def _specimens() -> Iterator[Specimen]:
    parent = VhdxBuilder(6 * MIB, data_write_guid=_PARENT_ID)
    parent.put(2, pattern(2, 4096))
    beside = {"p.vhdx": parent.build()}
    yield _specimen("log", _child(log=True), beside)
    yield _specimen("differencing", _child(log=False), beside)
    yield _specimen("dynamic", _dynamic())
    yield _specimen("4 KiB sectors", _dynamic(sector_size=4096, physical_sector_size=4096))
    yield from seeds.samples("vhdx")
    yield from seeds.corpus(lambda row: row.format.startswith("vhdx"), max_size=16 << 20)


def _structure(draft: Draft) -> Structure:
    fields: list[Field] = []
    tables: list[Table] = []
    texts: list[Text] = []
    current = max(_HEADERS, key=lambda at: draft.number(Field(at + 8, 8)))
    fields += fields_of(structures.HEADER, current)[:20]
    region = _REGIONS[0]
    fields += fields_of(structures.REGION_TABLE_HEADER, region)
    for entry in range(2):
        at = region + 16 + 32 * entry
        fields += [Field(at, 4), Field(at + 16, 8), Field(at + 24, 4), Field(at + 28, 4)]
        place = draft.number(Field(at + 16, 8))
        if place >= draft.size:
            continue
        if draft.read(place, 8) == b"metadata":
            _metadata(draft, place, fields, texts)
        else:
            tables += [Table(place, 8, _BAT_SHOWN)] * 3
    log = draft.number(Field(current + 72, 8))
    for at in range(log, log + 4 * 4096, 4096):
        if draft.read(at, 4) != b"loge":
            continue
        fields += fields_of(structures.LOG_ENTRY_HEADER, at)
        for descriptor in range(at + 64, at + 128, 32):
            fields += [Field(descriptor, 4)] + [Field(descriptor + step, 8) for step in (8, 16, 24)]
        fields += [Field(at + 4096, 4), Field(at + 4100, 4), Field(at + 8188, 4)]
        # A data sector that replaces the beginning of the BAT.
        tables.append(Table(at + 4096 + 8, 8, _BAT_SHOWN))
    return Structure(tuple(fields), tuple(tables), tuple(texts))


def _metadata(draft: Draft, place: int, fields: list[Field], texts: list[Text]) -> None:
    fields += fields_of(structures.METADATA_TABLE_HEADER, place)[:3]
    for number in range(6):
        at = place + 32 + 32 * number
        fields += [Field(at, 4), Field(at + 16, 4), Field(at + 20, 4), Field(at + 24, 4)]
        item, length = place + draft.number(Field(at + 16, 4)), draft.number(Field(at + 20, 4))
        if length <= 8:
            fields += [Field(item, min(length, 4))] * bool(length) + [Field(item, 8)] * (length == 8)
        elif number == 5:
            fields += fields_of(structures.PARENT_LOCATOR_HEADER, item)
            for pair in range(3):
                entry = item + 20 + 12 * pair
                fields += [Field(entry, 4), Field(entry + 4, 4), Field(entry + 8, 2), Field(entry + 10, 2)]
            texts.append(Text(item + 56, min(length, 400)))


def _mend(draft: Draft, chance: random.Random) -> None:
    """Both headers, both region tables and the log's entries get the right sums; mostly the tables agree."""
    for at in _HEADERS:
        _seal(draft, at, 4096)
    if chance.random() < 0.7:
        draft.write(_REGIONS[1], draft.read(_REGIONS[0], 1024))
    for at in _REGIONS:
        _seal(draft, at, _REGION_TABLE)
    log = max(draft.number(Field(at + 72, 8)) for at in _HEADERS)
    for at in range(log, log + 4 * 4096, 4096):
        if draft.read(at, 4) == b"loge":
            length = draft.number(Field(at + 8, 4))
            _seal(draft, at, length if 4096 <= length <= _MAX_LOG_ENTRY else 4096)


def _seal(draft: Draft, at: int, length: int) -> None:
    if any(draft.read(at, 16)):
        data = draft.read(at, length)
        draft.write(at + 4, struct.pack("<I", google_crc32c.value(data[:4] + bytes(4) + data[8:])))


VHDX = Format(
    "vhdx",
    "disk.vhdx",
    _specimens,
    _structure,
    _mend,
    driver="vhdx",
    more_read=MAX_LOG_LENGTH,  # A log that is to be replayed is read whole: the last entry can be anywhere in it.
)
