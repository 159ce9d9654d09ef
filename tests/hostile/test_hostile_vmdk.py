"""VMDK files made to break a reader: each gives one clear error, or the right bytes, in little time and memory.

The files are opened in one child process with a small address space; each test looks at what it reported.
"""

import ast
import contextlib
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from diskfs.sources.file import open_file
from diskfs.sources.locate import FolderFiles
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import ImageError
from diskfs_formats.vmdk import VmdkDriver
from tests.helpers import ROOT, CorpusRow, corpus_rows
from tests.samples.vmdk_builder import (
    GD_AT_END,
    HEADER_FIELDS,
    NO_DESCRIPTOR,
    SECTOR,
    Built,
    Layout,
    build,
    build_grains,
    descriptor_text,
    marker,
    record,
    stamped,
    with_zero_grains,
)

MAX_SECONDS = 2.0
MAX_GROWTH = 64 << 20
MAX_OPENING_READS = 16
MAX_OPENING_BYTES = 4 << 20
MAX_MESSAGE = 1200

GRAIN = 8
GRAIN_SIZE = GRAIN * SECTOR
CONTENT = with_zero_grains(stamped(GRAIN * 40 + 3), GRAIN, (5, 6, 20))
PLAIN = build(CONTENT, Layout(grain=GRAIN, entries=16, redundant=True, shuffle=1))
STREAM = build(CONTENT, Layout(grain=GRAIN, entries=16, version=3, compressed=True, footer=True, shuffle=1))
SEEKABLE = build(CONTENT, Layout(grain=GRAIN, entries=16, version=3, compressed=True))
BASES = {"plain": PLAIN, "stream": STREAM, "seekable": SEEKABLE}


@dataclass
class Job:
    """One hostile file, and what is expected of it.

    `expect`: the error that opening raises, `right` for all bytes right, `survives` for any error or none, `grains`
    for exactly `failed` failing and the others right, `fails` for opening but failing reads.
    """

    name: str
    data: bytes | str
    """The bytes, or the base that is patched."""
    expect: str
    failed: list[int] = field(default_factory=list)
    patches: list[tuple[int, str]] = field(default_factory=list)
    size: int | None = None
    compared: bytes | None = CONTENT
    on_disk: bool = False
    check: bool = False
    path: Path | None = None


def job(name: str, built: Built | bytes, expect: str, **more: Any) -> Job:
    return Job(name, bytes(built), expect, **more)


# ---- every field at its extremes ----

VALUES = (0, 1, 2, 2**31, 2**32 - 2, 2**32 - 1, 2**63, 2**64 - 2, 2**64 - 1)
PAIRS = (
    ("capacity", "grainSize"),
    ("capacity", "numGTEsPerGT"),
    ("grainSize", "numGTEsPerGT"),
    ("capacity", "gdOffset"),
    ("descriptorOffset", "descriptorSize"),
    ("flags", "compressAlgorithm"),
    ("flags", "rgdOffset"),
)
PAIR_VALUES = (0, 1, 128, 4096, 1 << 21, 2**31, 2**32 - 1, 2**54 - 1, 2**63, 2**64 - 1)
IGNORED = {("plain", "uncleanShutdown"), ("stream", "uncleanShutdown"), ("plain", "rgdOffset"), ("stream", "rgdOffset")}
"""Fields whose value changes no byte of the disk."""


def patch_of(name: str, value: int, sector: int = 0) -> tuple[int, str] | None:
    offset, code = HEADER_FIELDS[name]
    if value >> (8 * struct.calcsize(code)):
        return None
    return sector * SECTOR + offset, struct.pack("<" + code, value).hex()


def field_sweep() -> Iterator[Job]:
    for base, built in (("plain", PLAIN), ("stream", STREAM)):
        places = (
            {"header": [0]} if base == "plain" else {"header": [0], "footer": [built.footer], "both": [0, built.footer]}
        )
        for name, (_, code) in HEADER_FIELDS.items():
            for value in dict.fromkeys(
                (*VALUES, 2 ** (8 * struct.calcsize(code)) - 1, 2 ** (8 * struct.calcsize(code)) - 2)
            ):
                for place, sectors in places.items():
                    patches = [patch for sector in sectors if (patch := patch_of(name, value, sector))]
                    if len(patches) == len(sectors):
                        expect = "right" if (base, name) in IGNORED else "survives"
                        yield Job(f"sweep {base} {place} {name}={value:#x}", base, expect, patches=patches)


def pair_sweep() -> Iterator[Job]:
    for base, built in (("plain", PLAIN), ("stream", STREAM)):
        sectors = [0] if base == "plain" else [0, built.footer]
        for one, two in PAIRS:
            for first in PAIR_VALUES:
                for second in PAIR_VALUES:
                    patches = [
                        patch
                        for sector in sectors
                        for name, value in ((one, first), (two, second))
                        if (patch := patch_of(name, value, sector))
                    ]
                    if len(patches) == 2 * len(sectors):
                        yield Job(f"pair {base} {one}={first:#x} {two}={second:#x}", base, "survives", patches=patches)


def huge_claims() -> Iterator[Job]:
    sizes = {"2 TiB": 1 << 32, "64 TiB": 1 << 37, "2^63": (1 << 54) - 1, "2^63 + 1": 1 << 54, "2^64 sectors": 2**64 - 1}
    for name, capacity in sizes.items():
        for grain, entries in ((1, 1), (8, 512), (128, 512), (1 << 21, 4096), (1 << 21, 1)):
            for compressed in (False, True):
                layout = Layout(
                    grain=grain if not compressed else min(grain, 1 << 15), entries=entries, compressed=compressed
                )
                built = build_grains({}, 8, layout).set_field("capacity", capacity)
                yield Job(
                    f"claim {name} grain {layout.grain} entries {entries} {'deflate' if compressed else 'plain'}",
                    bytes(built), "survives", size=1 << 20, compared=None,
                )  # fmt: skip
    # Claims that the file bears out: its directory is all there, and all zero.
    small = Layout(grain=1 << 21, entries=4096)
    for name, capacity in (("64 TiB", 1 << 37), ("2^50", 1 << 41), ("2^63", (1 << 54) - 1)):
        built = build_grains({}, capacity, small)
        yield job(f"honest {name}", built, "survives", compared=None)
    for number in (1, 1000, 2**20 // 4):
        # Every table of a huge disk is the same one, and every grain in it the same grain.
        built = build_grains(
            {0: b"x" * 512}, number * 4096 * 8, Layout(grain=8, entries=4096, descriptor=NO_DESCRIPTOR)
        )
        table = built.tables[0]
        built.data[built.gd * 512 : built.gd * 512 + number * 4] = struct.pack("<I", table) * number
        place = table * 512
        built.data[place : place + 4096 * 4] = struct.pack("<I", built.grains[0]) * 4096
        yield job(f"one table {number} times", built, "survives", compared=None)


# ---- header and footer that disagree ----


def disagreements() -> Iterator[Job]:
    foot = STREAM.footer

    def footer(name: str, value: int, expect: str) -> Job:
        built = STREAM.copy().set_field(name, value, sector=foot)
        return job(f"footer {name}={value:#x}", built, expect)

    yield footer("magicNumber", 0, "TruncatedImage")
    yield footer("version", 2, "CorruptImage")
    yield footer("version", 99, "UnsupportedFeature")
    yield footer("flags", 0x10001, "UnsupportedFeature")
    yield footer("flags", 0x30003, "CorruptImage")
    yield footer("flags", 0x30005, "CorruptImage")
    yield footer("flags", 0x70001, "UnsupportedFeature")
    yield footer("capacity", 324, "CorruptImage")
    yield footer("capacity", 322, "CorruptImage")
    yield footer("capacity", 0, "CorruptImage")
    yield footer("grainSize", 16, "CorruptImage")
    yield footer("grainSize", 0, "CorruptImage")
    yield footer("descriptorOffset", 2, "CorruptImage")
    yield footer("descriptorSize", 2, "CorruptImage")
    yield footer("numGTEsPerGT", 32, "CorruptImage")
    yield footer("compressAlgorithm", 0, "CorruptImage")
    yield footer("gdOffset", GD_AT_END, "CorruptImage")
    yield footer("gdOffset", 0, "CorruptImage")
    yield footer("gdOffset", len(STREAM.data) // 512, "TruncatedImage")
    yield footer("gdOffset", 2**63, "TruncatedImage")
    yield footer("gdOffset", 1, "fails")
    yield footer("singleEndLineChar", 0x0D, "CorruptImage")
    # What a footer may say as it likes.
    yield footer("rgdOffset", 7, "right")
    yield footer("overHead", 2**40, "right")
    yield footer("uncleanShutdown", 1, "right")

    for name, value, expect in (
        ("capacity", 324, "CorruptImage"),
        ("version", 1, "CorruptImage"),
        ("grainSize", 4, "CorruptImage"),
        ("numGTEsPerGT", 8, "CorruptImage"),
    ):
        yield job(f"header {name}={value:#x}", STREAM.copy().set_field(name, value), expect)

    def tail(name: str, expect: str, *, at: int, data: bytes) -> Job:
        built = STREAM.copy()
        built.data[at * 512 : at * 512 + len(data)] = data
        return job(name, built, expect)

    yield tail("footer marker of two sectors", "TruncatedImage", at=foot - 1, data=marker(2, 3))
    yield tail("footer marker with a size", "TruncatedImage", at=foot - 1, data=struct.pack("<QII", 1, 1, 3))
    yield tail("footer marker of another type", "TruncatedImage", at=foot - 1, data=marker(1, 2))
    yield tail("end-of-stream marker overwritten", "right", at=foot + 1, data=b"\xff" * 512)
    yield job("no end-of-stream marker", bytes(STREAM)[:-512], "right")
    yield job("one byte more", bytes(STREAM) + b"\0", "right")
    yield job("one sector more", bytes(STREAM) + bytes(512), "right")
    yield job("the tail twice", bytes(STREAM) + bytes(STREAM.data[(foot - 1) * 512 :]), "right")
    yield job("footer cut", bytes(STREAM)[: foot * 512 + 511], "TruncatedImage")
    yield job("footer out of reach", bytes(STREAM) + bytes(2 << 20), "TruncatedImage")
    lying = STREAM.copy().set_field("gdOffset", STREAM.gd)
    yield job(
        "a directory in the header wins over a footer that lies", lying.set_field("gdOffset", 1, sector=foot), "right"
    )

    for name, offset in (
        ("redundant directory of zeroes", PLAIN.rgd * 512),
        ("redundant table of zeroes", (PLAIN.rgd + 1) * 512),
    ):
        built = PLAIN.copy()
        built.data[offset : offset + 12] = bytes(12)
        yield job(name, built, "right")
    yield job("redundant directory far away", PLAIN.copy().set_field("rgdOffset", 2**63), "right")
    yield job("redundant directory is the directory", PLAIN.copy().set_field("rgdOffset", PLAIN.gd), "right")


# ---- entries that point where they must not ----


def entries() -> Iterator[Job]:
    table_grains = list(range(16, 32))
    for base, built in BASES.items():
        end = len(built.data) // 512
        stored = 18
        for name, sector in (("descriptor", 1), ("directory", built.gd), ("end", end), ("far end", 2**32 - 1)):
            yield job(
                f"{base}: entry into the {name}", built.copy().set_entry(stored, sector), "grains", failed=[stored]
            )
            pointed = built.copy().set_directory(1, sector)
            yield job(f"{base}: table in the {name}", pointed, "grains", failed=[n for n in table_grains if n < 41])
        if built.rgd:
            yield job(f"{base}: entry into the copy", built.copy().set_entry(18, built.rgd), "grains", failed=[18])
            yield job(
                f"{base}: table in the copy", built.copy().set_directory(1, built.rgd), "grains", failed=table_grains
            )
        # A hole where data was: no error can tell, and none of the file's bytes come out.
        yield job(f"{base}: entry of nothing", built.copy().set_entry(18, 0), "survives", compared=None)
        if built.layout.compressed:
            for name, sector in (
                ("another's record", built.grains[19]),
                ("a marker", end - 1),
                ("a table", built.tables[0]),
            ):
                yield job(f"{base}: entry of {name}", built.copy().set_entry(18, sector), "grains", failed=[18])
            # A marker of zeroes where the entry points into padding.
            yield job(
                f"{base}: entry of the last sector of a record",
                built.copy().set_entry(18, built.grains[19] + 1),
                "survives",
            )
        else:
            yield job(
                f"{base}: two entries of one grain",
                built.copy().set_entry(18, built.grains[19]),
                "survives",
                compared=None,
            )
            last = len(built.data) // 512
            yield job(f"{base}: grain over the end", built.copy().set_entry(18, last - 1), "grains", failed=[18])
            yield job(f"{base}: entry of one", built.copy().set_entry(18, 1), "grains", failed=[18])
    unaligned = build(CONTENT, Layout(grain=GRAIN, entries=16, gap=3))
    yield job("grains at odd sectors", unaligned, "right")
    for number in range(3):
        yield job(
            f"table {number} in itself", PLAIN.copy().set_directory(number, PLAIN.grains[0]), "survives", compared=None
        )


# ---- deflate ----


def bomb(size: int) -> bytes:
    """Return a zlib stream of `size` zeroes, a multiple of 1 MiB, without making them."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.flush()[:-4]
    adler = (size % 65521) << 16 | 1
    return head + again * ((size >> 20) - 1) + end + adler.to_bytes(4, "big")


def payloads() -> Iterator[tuple[str, bytes, str, int | None]]:
    """Yield name, compressed bytes, verdict, and the size that the marker says if it lies."""
    grain = CONTENT[18 * GRAIN_SIZE : 19 * GRAIN_SIZE]
    good = zlib.compress(grain)
    yield "level 9", zlib.compress(grain, 9), "right", None
    yield "level 1", zlib.compress(grain, 1), "right", None
    yield "stored blocks", zlib.compress(grain, 0), "right", None
    fixed = zlib.compressobj(6, zlib.DEFLATED, 9, 9, zlib.Z_FIXED)
    yield "fixed codes, small window", fixed.compress(grain) + fixed.flush(), "right", None
    many = zlib.compressobj()
    flushed = b"".join(
        many.compress(grain[at : at + 64]) + many.flush(zlib.Z_FULL_FLUSH) for at in range(0, GRAIN_SIZE, 64)
    )
    yield "many blocks", flushed + many.flush(), "right", None
    yield "one byte more", zlib.compress(grain + b"\0"), "grain", None
    yield "one byte less", zlib.compress(grain[:-1]), "grain", None
    yield "one sector less", zlib.compress(grain[:-512]), "grain", None
    yield "twice the grain", zlib.compress(grain * 2), "grain", None
    yield "nothing", zlib.compress(b""), "grain", None
    yield "bomb of 8 MiB", bomb(7 << 20), "grain", None
    yield "bomb of 2 GiB", bomb(2 << 30), "grain", None
    yield "bomb of 2 GiB that says it is small", bomb(2 << 30), "grain", 2 * GRAIN_SIZE
    yield "cut", good[:-1], "grain", None
    yield "cut in half", good[: len(good) // 2], "grain", None
    yield "without its checksum", good[:-4], "grain", None
    yield "one byte of garbage", good + b"\0", "grain", None
    yield "garbage", good + b"garbage", "grain", None
    # A second stream with the first one's checksum hides that the first has ended; the bytes are right all the same.
    yield "two equal streams", good + good, "right", None
    yield "two streams", good + zlib.compress(b"x"), "grain", None
    yield "wrong checksum", good[:-1] + bytes([good[-1] ^ 1]), "grain", None
    yield "another's bytes", zlib.compress(grain)[:-4] + zlib.compress(b"x" * GRAIN_SIZE)[-4:], "grain", None
    raw = zlib.compressobj(wbits=-15)
    yield "no zlib header", raw.compress(grain) + raw.flush(), "grain", None
    gzipped = zlib.compressobj(wbits=31)
    yield "gzip", gzipped.compress(grain) + gzipped.flush(), "grain", None
    preset = zlib.compressobj(zdict=b"dictionary")
    yield "preset dictionary", preset.compress(grain) + preset.flush(), "grain", None
    yield "header check wrong", b"\x78\x9d" + good[2:], "grain", None
    yield "method 7", b"\x77\x01" + good[2:], "grain", None
    yield "reserved block", b"\x78\x9c\x07" + bytes(20), "grain", None
    yield "zeroes", bytes(100), "grain", None
    yield "ones", b"\xff" * 100, "grain", None
    yield "size 0", good, "grain", 0
    yield "size 1", good, "grain", 1
    yield "size one short", good, "grain", len(good) - 1
    yield "size one long", good, "grain", len(good) + 1
    yield "size of two grains", good, "grain", 2 * GRAIN_SIZE
    yield "size of over two grains", good, "grain", 2 * GRAIN_SIZE + 1
    yield "size 2^31", good, "grain", 2**31
    yield "size 2^32 - 1", good, "grain", 2**32 - 1
    yield "size up to the end", good, "right", len(good)


def deflated() -> Iterator[Job]:
    for base in ("stream", "seekable"):
        for name, payload, verdict, size in payloads():
            built = BASES[base].copy()
            if base == "stream":
                # The tail moves behind the new record.
                tail = bytes(built.data[(built.footer - 1) * 512 :])
                del built.data[(built.footer - 1) * 512 :]
                built.set_entry(18, built.append_record(18 * GRAIN, payload, size=size))
                built.data += tail
            else:
                built.set_entry(18, built.append_record(18 * GRAIN, payload, size=size))
            expect, failed = ("right", []) if verdict == "right" else ("grains", [18])
            yield job(f"deflate {base}: {name}", built, expect, failed=failed)
    for name, lba in (
        ("another grain's", 19 * GRAIN),
        ("the next sector's", 18 * GRAIN + 1),
        ("2^64 - 1", 2**64 - 1),
        ("0", 0),
    ):
        built = SEEKABLE.copy()
        payload = zlib.compress(CONTENT[18 * GRAIN_SIZE : 19 * GRAIN_SIZE])
        built.set_entry(18, built.append_record(lba, payload))
        yield job(f"deflate: LBA is {name}", built, "grains", failed=[18])
    for size in (512 * 3 - 1, 512 * 3, 512 * 3 + 1, 512 * 4, GRAIN_SIZE):
        # The last grain holds three sectors of the disk.
        built = SEEKABLE.copy()
        payload = zlib.compress(CONTENT[40 * GRAIN_SIZE :].ljust(GRAIN_SIZE, b"\0")[:size])
        built.set_entry(40, built.append_record(40 * GRAIN, payload))
        expect, failed = ("right", []) if size >= 512 * 3 else ("grains", [40])
        yield job(f"deflate: last grain of {size} bytes", built, expect, failed=failed)
    built = SEEKABLE.copy()
    sector = built.append_record(18 * GRAIN, b"")
    del built.data[sector * 512 + 12 :]
    yield job("deflate: a marker at the very end", built.set_entry(18, sector), "grains", failed=[18])
    del built.data[sector * 512 + 7 :]
    yield job("deflate: half a marker at the very end", built, "grains", failed=[18])
    overlapping = SEEKABLE.copy()
    size = SEEKABLE.sizes[18]
    struct.pack_into("<I", overlapping.data, SEEKABLE.grains[18] * 512 + 8, size + 512)
    yield job("deflate: a record that reaches into the next", overlapping, "grains", failed=[18])
    # Large grains: what is inflated is bounded by the grain, whatever the stream holds.
    large = Layout(grain=1 << 15, entries=512, compressed=True, descriptor=NO_DESCRIPTOR)
    built = build_grains({}, 4 << 15, Layout(**{**vars(large), "all_tables": True}))
    for number in range(4):
        built.set_entry(number, built.append_record(number << 15, bomb(2 << 30)))
    yield job("deflate: bombs of 2 GiB in grains of 16 MiB", built, "fails", compared=None, check=True)


# ---- descriptors ----

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m"
HINTS = ("/etc/passwd", "../../etc/passwd", ESCAPES, "a\u202egpj.exe", "x" * 4096, "json:{}", "nbd://127.0.0.1:1/", "")


def descriptors() -> Iterator[Job]:
    layout = Layout(grain=GRAIN, entries=16)

    def embedded(name: str, text: str, expect: str) -> Iterator[Job]:
        for compressed in (False, True):
            kind = "deflate" if compressed else "plain"
            built = build(CONTENT, Layout(**{**vars(layout), "descriptor": text, "compressed": compressed}))
            yield job(f"descriptor {kind}: {name}", built, expect, on_disk=True)

    def alone(name: str, text: str | bytes, expect: str) -> Job:
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        return job(f"descriptor alone: {name}", data, expect, on_disk=True, compared=None)

    capacity = len(CONTENT) // 512
    usual = descriptor_text(capacity)
    for name in (
        "/etc/passwd",
        "../../../etc/passwd",
        "/dev/zero",
        "\\\\host\\share",
        "C:\\x",
        "http://127.0.0.1/x",
        "",
        ".",
        ESCAPES,
    ):
        # Inside a sparse file the name means the file itself, whatever it says.
        yield from embedded(f"names {name!r}", usual.replace("disk.vmdk", name), "right")
        for kind in ("FLAT", "SPARSE", "VMFS", "VMFSSPARSE", "SESPARSE", "VMFSRDM"):
            text = f'version=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\nRW 8 {kind} "{name}" 0\n'
            yield alone(f"{kind} {name!r}", text, "error")
        for kind in ("FLAT", "VMFS", "ZERO", "SESPARSE"):
            # Beside grains of its own, a file's descriptor may not list others.
            text = usual.replace("SPARSE", kind).replace("disk.vmdk", name)
            yield from embedded(f"{kind} {name!r}", text, "UnsupportedFeature")
    for hint in HINTS:
        text = usual.replace("ffffffff", f'12345678\nparentFileNameHint="{hint}"')
        yield from embedded(f"parent {hint[:20]!r}", text, "ParentUnavailable")
        yield alone(f"parent {hint[:20]!r}", text, "error")
    for value in (ESCAPES, "x\ry", "\u202e", "\udcff", "x" * 5000):
        yield from embedded(
            f"type {value[:12]!r}", usual.replace("monolithicSparse", value).replace("streamOptimized", value), "right"
        )
        yield alone(f"type {value[:12]!r}", f'version=1\ncreateType="{value}"\n', "error")
        yield from embedded(f"parentCID {value[:12]!r}", usual.replace("ffffffff", value), "CorruptImage")
        yield from embedded(f"line {value[:12]!r}", usual + f"RW {value}\n", "CorruptImage")
        yield from embedded(f"CID {value[:12]!r}", usual.replace("7d1c23ab", value), "right")
        yield from embedded(f"encoding {value[:12]!r}", f'encoding="{value}"\n' + usual, "right")
    for encoding in (
        "utf-16",
        "utf-7",
        "zlib",
        "unicode_escape",
        "idna",
        "cp037",
        "no such",
        "hz",
        "iso2022_jp",
        "GBK",
    ):
        yield from embedded(f"encoding {encoding}", f'encoding="{encoding}"\n' + usual, "right")
    yield from embedded(
        "two extents of this file", usual.replace("RW", f'RW {capacity} SPARSE "a"\nRW'), "UnsupportedFeature"
    )
    many = 'RW 1 SPARSE "x"\n'
    yield from embedded("100 extent lines", usual + many * 100, "UnsupportedFeature")
    yield from embedded("20,000 extent lines", usual + many * 20_000, "CorruptImage")
    yield alone("100,000 extent lines", "version=1\n" + many * 100_000, "error")
    yield from embedded("sizes of 10^19", usual.replace(f"RW {capacity}", "RW 9999999999999999999"), "right")
    yield from embedded("a size of 10^40", usual.replace(f"RW {capacity}", "RW " + "9" * 40), "CorruptImage")
    mebibyte = 1 << 20
    junk = {
        "lines": "\n" * mebibyte, "spaces": "a=b" + " " * (mebibyte - 8) + "c", "keys": "a=" * (mebibyte // 2),
        "short keys": "".join(f"{number:x}=\n" for number in range(150_000)), "one key": "a" * mebibyte,
        "encodings": "encoding = \n" * (mebibyte // 12), "quotes": '"' * mebibyte, "access": "RW\t" * (mebibyte // 3),
        "comments": "#\n" * (mebibyte // 2), "escapes": "\x1b[" * (mebibyte // 2), "0xff": "\udcff" * mebibyte,
    }  # fmt: skip
    for name, text in junk.items():
        full = "version=1\n" + text
        yield alone(f"1 MiB of {name}", full[:mebibyte], "error")
        built = build(CONTENT, Layout(grain=GRAIN, entries=16, descriptor=text[: mebibyte - 512]))
        yield job(f"descriptor embedded: 1 MiB of {name}", built, "survives", on_disk=True)
    for name, data in (
        ("no text", b""), ("NUL", b"version=1\0RW 8 ZERO\n"), ("UTF-16", "version=1\n".encode("utf-16")),
        ("random", bytes(range(256)) * 16), ("COWD", b"COWD" + b"\xff" * 2044), ("COWD cut", b"COWD"),
        ("seSparse", bytes.fromhex("bebafeca00000000")), ("unfinished", b"kdmv"), ("magic", b"KDMV"),
        ("text after the magic", b"KDMV" + b" is an abbreviation\n" * 50),
        ("itself", b'version=1\nRW 8 SPARSE "sample.vmdk"\n'),
    ):  # fmt: skip
        yield alone(name, data, "error")
    for sectors in (1, 2, 3, 2047, 2048, 2049, 2**31, 2**55):
        built = PLAIN.copy().set_field("descriptorSize", sectors)
        yield job(f"descriptor of {sectors} sectors", built, "survives")
    yield job("a descriptor that is the header", PLAIN.copy().set_field("descriptorOffset", 0), "right")
    yield job("a descriptor over the tables", PLAIN.copy().set_field("descriptorSize", PLAIN.grains[0]), "fails")


def all_jobs() -> list[Job]:
    jobs = [
        job("warm-up", PLAIN, "right", check=True), *field_sweep(), *pair_sweep(), *huge_claims(), *disagreements(),
        *entries(), *deflated(), *descriptors(),
    ]  # fmt: skip
    jobs += [
        Job(f"corpus {row.path}", b"", "refused or survives", compared=None, on_disk=True, path=Path(row.path))
        for row in hostile_rows()
    ]
    assert len({each.name for each in jobs}) == len(jobs)
    return jobs


def hostile_rows() -> list[CorpusRow]:
    return [row for row in corpus_rows() if row.hostile and "vmdk" in row.format]


JOBS = all_jobs()


@dataclass
class Outcome:
    """What the child reported."""

    by_name: dict[str, dict[str, Any]]
    total_growth: int
    folders: dict[str, Path]
    """Where each image lies: the files beside it are its own."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Outcome:
    folder = tmp_path_factory.mktemp("hostile")
    bases = {}
    for name, built in BASES.items():
        bases[name] = folder / f"{name}.vmdk"
        bases[name].write_bytes(bytes(built))
    reference = folder / "reference.raw"
    reference.write_bytes(CONTENT)
    corpus = request.getfixturevalue("corpus") if hostile_rows() else folder
    packed: list[dict[str, Any]] = []
    for number, each in enumerate(JOBS):
        if each.path is not None:
            base = corpus / each.path
        elif isinstance(each.data, str):
            base = bases[each.data]
        else:
            (folder / str(number)).mkdir()
            base = folder / str(number) / "sample.vmdk"
            base.write_bytes(each.data)
        packed.append(
            {
                "name": each.name, "base": str(base), "patches": each.patches, "size": each.size,
                "reference": str(reference) if each.compared is not None else None,
                "format": "vmdk" if each.path is None else None, "on_disk": each.on_disk, "check": each.check,
            }
        )  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps(packed))
    command = [sys.executable, "-W", "error", "-m", "tests.hostile.opening_child", str(folder / "jobs.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    folders = {each["name"]: Path(each["base"]).parent for each in packed}
    return Outcome({line["name"]: line for line in lines[:-1]}, lines[-1]["total_growth"], folders)


def group(word: str) -> list[Job]:
    return [each for each in JOBS if each.name.split(" ")[0] == word]


@pytest.mark.parametrize(
    "each",
    [each for each in JOBS if each.name.split(" ")[0] not in {"sweep", "pair", "claim"}],
    ids=lambda each: each.name,
)
def test_the_verdict(each: Job, outcome: Outcome) -> None:
    _require_verdict(each, outcome.by_name[each.name])


@pytest.mark.parametrize("word", ["sweep", "pair", "claim"])
def test_the_verdict_of_every_value_of_every_field(word: str, outcome: Outcome) -> None:
    jobs = group(word)
    assert len(jobs) >= {"sweep": 400, "pair": 900, "claim": 50}[word]
    for each in jobs:
        _require_verdict(each, outcome.by_name[each.name])


def _require_verdict(each: Job, found: dict[str, Any]) -> None:
    shown = {key: value for key, value in found.items() if key != "messages"} | {"messages": found["messages"][:3]}
    assert found["crash"] is None, f"{each.name}:\n{found['crash']}"
    match each.expect:
        case "right":
            assert found["error"] is None, f"{each.name}: {shown}"
            assert (found["size"], found["failed"], found["wrong"]) == (len(CONTENT), [], []), f"{each.name}: {shown}"
        case "grains":
            assert found["error"] is None, f"{each.name}: {shown}"
            assert (found["failed"], found["wrong"]) == (each.failed, []), f"{each.name}: {shown}"
        case "fails":
            assert found["error"] is None, f"{each.name}: {shown}"
            assert found.get("read_error") in {"CorruptImage", "TruncatedImage"}, f"{each.name}: {shown}"
            assert found["wrong"] == [], f"{each.name}: {shown}"
        case "error":
            assert found["error"], f"{each.name}: {shown}"
        case "survives" | "refused or survives":
            pass
        case _:
            assert found["error"] == each.expect, f"{each.name}: {shown}"


def test_no_file_takes_long(outcome: Outcome) -> None:
    slow = {name: found["seconds"] for name, found in outcome.by_name.items() if found["seconds"] > MAX_SECONDS}
    assert slow == {}


def test_no_file_takes_much_memory(outcome: Outcome) -> None:
    grown = {name: found["growth"] for name, found in outcome.by_name.items() if found["growth"] > 1 << 20}
    # All files together, one after the other in one process, stay below what one of them may take.
    assert outcome.total_growth <= MAX_GROWTH, grown


def test_opening_reads_little_of_any_file(outcome: Outcome) -> None:
    assert {name: found["reads"] for name, found in outcome.by_name.items() if found["reads"] > MAX_OPENING_READS} == {}
    assert {name: found["bytes"] for name, found in outcome.by_name.items() if found["bytes"] > MAX_OPENING_BYTES} == {}


def test_every_message_is_one_line_that_names_the_file(outcome: Outcome) -> None:
    for name, found in outcome.by_name.items():
        file_name = Path(next(each.path for each in JOBS if each.name == name) or "sample.vmdk").name
        for message in found["messages"]:
            assert message.isprintable(), f"{name}: {message!r}"
            assert len(message) <= MAX_MESSAGE, f"{name}: {len(message)} characters: {message[:200]}"
            assert file_name in message, f"{name}: {message}"


def test_no_other_file_and_no_socket_is_opened(outcome: Outcome) -> None:
    outside = {
        name: paths
        for name, found in outcome.by_name.items()
        if (paths := [path for path in found["opened"] if Path(path).parent != outcome.folders[name]])
    }
    assert outside == {}


def test_the_size_is_never_more_than_the_kernel_can_say(outcome: Outcome) -> None:
    assert all(0 < found.get("size", 1) < 1 << 63 for found in outcome.by_name.values())


def test_there_are_enough_hostile_files() -> None:
    assert len(JOBS) > 1800
    assert len([each for each in JOBS if each.expect not in {"survives", "refused or survives"}]) > 300


@pytest.mark.parametrize("row", hostile_rows(), ids=lambda row: row.path)
def test_hostile_files_of_the_corpus(row: CorpusRow, outcome: Outcome) -> None:
    found = outcome.by_name[f"corpus {row.path}"]
    assert found["crash"] is None, found["crash"]
    # Each is refused as a whole, or a stream cut in its middle: its reads fail, and none gives other bytes.
    assert found["error"] or found.get("read_error"), found


# ---- names of other files ----

BARE = (
    "json:{}", "$HOME", "..%2fcanary", "\uff0e\uff0e\uff0fcanary", "missing-flat.vmdk", "\udcff\udcfe", "-rf",
    "x" * 255,
)  # fmt: skip
"""Names that are one path component, of files that are not there."""
ELSEWHERE = (
    "/etc/passwd", "//etc/passwd", "/dev/zero", "/proc/self/environ", "/vmfs/volumes/5f1c/vm/vm-flat.vmdk", "../canary",
    "a/../../canary", "./beside", "sub/inside", "sub/../../canary", "..", ".", "", "~root/x", "/", "\\\\host\\share\\x",
    "C:\\x", "C:x", "c:/x", "..\\canary", "\\\\.\\PhysicalDrive0", "http://127.0.0.1:9/x", "nbd://127.0.0.1:10809/x",
    "file:///etc/passwd", "rbd:pool/x", "x" * 256, "x" * 4096, "\u00e9" * 128, "\x1b]0;owned\x07", "a\x01b", "a\tb",
    "a\x0bb",
)  # fmt: skip
"""Names that lead, or seem to lead, elsewhere."""
TRAPS = ("link", "dangling", "loop", "devlink", "proclink", "fifo", "sub", "socket", "device")
"""Names of things beside the image that are no regular files."""
CANARY = b"not to be read by any image" * 100


class Opened:
    """Notes what is opened and connected to while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith("socket.") or event in {"subprocess.Popen", "os.system", "os.exec"}:
            self.events.append(event)
        elif event == "open" and isinstance(arguments[0], str | bytes):
            self.events.append(os.fsdecode(arguments[0]))


@pytest.fixture(scope="module")
def audited() -> Opened:
    return Opened()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "canary").write_bytes(CANARY)
    here = tmp_path / "vm"
    (here / "sub").mkdir(parents=True)
    (here / "sub" / "inside").write_bytes(CANARY)
    (here / "beside").write_bytes(CANARY)
    (here / "link").symlink_to("../canary")
    (here / "dangling").symlink_to("../nothing")
    (here / "loop").symlink_to("loop")
    (here / "devlink").symlink_to("/dev/zero")
    (here / "proclink").symlink_to("/proc/self/environ")
    os.mkfifo(here / "fifo")
    with contextlib.suppress(OSError):
        os.mknod(here / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(here):
        listening.bind("socket")
        yield here


def open_watched(path: Path, audited: Opened) -> tuple[DiskImage | None, str]:
    """Open an image as the command line does, within the bounds; nothing outside its folder may be opened."""
    source = open_file(path)
    audited.events, audited.on = [], True
    began = time.process_time()
    message = ""
    disk = None
    try:
        disk = VmdkDriver().open(source, FolderFiles(path.parent, [source]))
    except ImageError as error:
        message = f"{type(error).__name__}: {error}"
    finally:
        audited.on = False
    assert time.process_time() - began < MAX_SECONDS
    assert [event for event in audited.events if Path(event).parent != path.parent] == []
    assert message.isprintable()
    assert len(message) < MAX_MESSAGE
    assert "passwd:" not in message
    return disk, message


@pytest.mark.parametrize("kind", ["FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"])
@pytest.mark.parametrize("name", [*ELSEWHERE, *TRAPS, *BARE], ids=lambda name: repr(name[:24]))
def test_an_extent_leads_to_no_other_file(name: str, kind: str, folder: Path, audited: Opened) -> None:
    path = folder / "disk.vmdk"
    text = f'version=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\nRW 1 {kind} "{name}"\n'
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    disk, message = open_watched(path, audited)
    assert disk is None
    assert "disk.vmdk" in message
    # Only root may make a device.
    is_missing = name in BARE or (name == "device" and not (folder / name).exists())
    assert message.startswith("ParentUnavailable: " if is_missing else "UnsafeReference: ")


@pytest.mark.parametrize("name", [*ELSEWHERE, *TRAPS, *BARE], ids=lambda name: repr(name[:24]))
def test_a_parent_leads_to_no_other_file(name: str, folder: Path, audited: Opened) -> None:
    path = folder / "disk.vmdk"
    text = f'version=1\nCID=1\nparentCID=2\nparentFileNameHint="{name}"\ncreateType="custom"\nRW 1 ZERO\n'
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    disk, message = open_watched(path, audited)
    assert disk is None
    assert str(folder) in message


def test_the_hook_sees_what_is_opened(folder: Path, audited: Opened) -> None:
    audited.events, audited.on = [], True
    (folder.parent / "canary").read_bytes()
    audited.on = False
    assert audited.events == [str(folder.parent / "canary")]
    assert len({*ELSEWHERE, *TRAPS, *BARE}) > 40


def test_a_file_beside_the_image_is_opened(folder: Path, audited: Opened) -> None:
    path = folder / "disk.vmdk"
    path.write_text('version=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\nRW 5 FLAT "beside"\n')
    disk, message = open_watched(path, audited)
    assert disk is not None, message
    assert disk.read_at(0, disk.size) == CANARY[: 5 * 512]
    assert audited.events == [str(folder / "beside")]
    disk.close()


# ---- the code itself ----

UNBOUNDED = {
    "GreedyRange", "GreedyBytes", "GreedyString", "RepeatUntil", "Pointer", "Prefixed", "PrefixedArray", "LazyArray",
    "FixedSized", "NullTerminated", "CString", "PascalString",
}  # fmt: skip
"""Parts of construct whose size or place may come from the file."""
SIZED = {"Array", "Bytes", "Padding"}
"""Parts that take a size, which must be a number or a named constant."""
MODULES = sorted([*(ROOT / "diskfs").rglob("*.py"), *(ROOT / "formats").rglob("*.py")])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_construct_is_used_for_fixed_sizes_only_and_tarfile_not_at_all(path: Path) -> None:
    tree = ast.parse(path.read_text())
    from_construct: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # Names can be checked; a module that is imported as a whole cannot.
            assert not {alias.name.split(".")[0] for alias in node.names} & {"tarfile", "construct"}, node.lineno
        elif isinstance(node, ast.ImportFrom):
            package = (node.module or "").split(".")[0]
            assert package != "tarfile", node.lineno
            if package == "construct":
                from_construct.update(alias.name for alias in node.names)
                assert all(alias.asname is None for alias in node.names), node.lineno
    assert not from_construct & (UNBOUNDED | {"*"})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SIZED & from_construct:
            size = node.args[0]
            is_fixed = isinstance(size, ast.Constant) or (isinstance(size, ast.Name) and size.id.isupper())
            assert is_fixed, f"{node.func.id} in line {node.lineno}"


def test_the_lint_finds_what_it_looks_for() -> None:
    assert any("construct" in path.read_text() for path in MODULES)
    assert len(MODULES) > 20


def test_a_record_is_packed_as_the_specification_says() -> None:
    packed = record(0x80, b"abc")
    assert packed == bytes.fromhex("8000000000000000 03000000 616263").ljust(512, b"\0")
    assert marker(4, 1) == bytes.fromhex("0400000000000000 00000000 01000000").ljust(512, b"\0")
    assert zlib.decompress(bomb(3 << 20)) == bytes(3 << 20)
