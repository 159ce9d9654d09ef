"""Partition tables: MBR with logical partitions, and GPT with sectors of 512 and 4096 bytes."""

import random
import struct
import zlib
from collections.abc import Iterator

from diskfs_formats.partitions.gpt import GPT_HEADER
from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure, Table, Text, fields_of
from tests.formats.test_partitions_gpt import gpt_disk, gpt_disk_of_4096
from tests.formats.test_partitions_mbr import boot_record

_RECORDS = 446
_MAX_ARRAY = 1 << 20
_EBRS = (1000, 1100, 1200)
_SECTOR = 512


def _mbr_disks() -> Iterator[Specimen]:
    primary = boot_record([(0x80, 0x83, 63, 500), (0, 0x07, 600, 300), (0, 0x05, 1000, 2000)], 0x12345678)
    ebrs = [boot_record([(0, 0x83, 10, 80), (0, 0x05, 100 * (number + 1), 100)]) for number in range(2)]
    ebrs.append(boot_record([(0, 0x82, 10, 80)]))
    pieces = [(0, primary), *((lba * _SECTOR, ebr) for lba, ebr in zip(_EBRS, ebrs, strict=True))]
    yield Specimen("logical", Draft(pieces, 4096 * _SECTOR))
    pieces = [(0, boot_record([(0, 0x83, 2048, 2048), (0, 0xEE, 1, 4095)]))]
    yield Specimen("protective", Draft(pieces, 4096 * _SECTOR))
    yield Specimen("one sector", Draft([(0, primary)], _SECTOR))


def _mbr_structure(_draft: Draft) -> Structure:
    fields = [Field(440, 4), Field(510, 2)]
    for start in (0, *(lba * _SECTOR for lba in _EBRS)):
        for record in range(start + _RECORDS, start + 510, 16):
            fields += [Field(record, 1), Field(record + 4, 1), Field(record + 8, 4), Field(record + 12, 4)]
    return Structure(tuple(fields), (Table(_RECORDS + 8, 4, 2),))


def _gpt_disks() -> Iterator[Specimen]:
    yield Specimen("512", Draft.of(bytes(gpt_disk())))
    yield Specimen("4096", Draft.of(bytes(gpt_disk_of_4096())))


def _headers(draft: Draft) -> list[tuple[int, int]]:
    """Return the offset of every header that is there, and the size of the sectors that it counts."""
    places = [(at, size) for size in (512, 4096) for at in (size, (draft.size // size - 1) * size)]
    return [(at, size) for at, size in places if draft.read(at, 8) == b"EFI PART"]


def _gpt_structure(draft: Draft) -> Structure:
    fields = [Field(510, 2), Field(446, 1), Field(450, 1), Field(454, 4), Field(458, 4)]
    tables = []
    texts = []
    for at, size in _headers(draft):
        fields += fields_of(GPT_HEADER, at)
        array = draft.number(Field(at + 72, 8)) * size
        for entry in (array, array + 128):
            fields += [Field(entry, 4), Field(entry + 32, 8), Field(entry + 40, 8), Field(entry + 48, 8)]
            texts.append(Text(entry + 56, 72))
        tables.append(Table(array, 8, 64))
    return Structure(tuple(fields), tuple(tables), tuple(texts))


def _mend_gpt(draft: Draft, chance: random.Random) -> None:
    """The arrays' sums, then the headers'."""
    for at, size in _headers(draft):
        place = draft.number(Field(at + 72, 8)) * size
        length = draft.number(Field(at + 80, 4)) * draft.number(Field(at + 84, 4))
        if length <= _MAX_ARRAY and chance.random() < 0.95:
            draft.write(at + 88, struct.pack("<I", zlib.crc32(_bytes(draft, place, length))))
        header_size = draft.number(Field(at + 12, 4))
        if 20 <= header_size <= size:
            header = draft.read(at, header_size)
            draft.write(at + 16, struct.pack("<I", zlib.crc32(header[:16] + bytes(4) + header[20:])))


def _bytes(draft: Draft, offset: int, length: int) -> bytes:
    """Return bytes of the file whatever pieces they lie in."""
    if offset + length > draft.size:
        return b""
    return draft.source("draft").read_at(offset, length)


MBR = Format("mbr", "disk.raw", _mbr_disks, _mbr_structure)
GPT = Format("gpt", "disk.raw", _gpt_disks, _gpt_structure, _mend_gpt)
