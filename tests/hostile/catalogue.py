"""The hostile catalogue: named files, each with the threat that it stands for and the verdict that it must get.

A threat is a row of the project's threat table (T1 to T19: what a file can make a reader do) or a CVE that was a bug of
another reader. Files are made when a test needs them. The verdict is what opening gives, as a user opens it: the class
of the error, `reads` if every byte can be read, `damaged` if it opens and some reads fail.
"""

import dataclasses
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tests.formats.test_partitions_gpt import gpt_disk
from tests.formats.test_partitions_gpt import header as gpt_header
from tests.formats.test_partitions_gpt import put as put_bytes
from tests.formats.test_partitions_mbr import boot_record
from tests.hostile import test_hostile_appliances as appliances
from tests.hostile import test_hostile_vhd as hostile_vhd
from tests.hostile import test_hostile_vmdk as hostile_vmdk
from tests.samples import qcow2_builder as qcow2
from tests.samples import vdi_builder as vdi
from tests.samples import vhd_builder as vhd
from tests.samples import vhdx_builder as vhdx
from tests.samples import vmdk_esx_builder as esx
from tests.samples.qcow2_builder import COMPRESSED, COPIED, Qcow2Builder
from tests.samples.vdi_builder import VdiBuilder
from tests.samples.vhd_builder import VhdBuilder
from tests.samples.vhdx_builder import KIB, LOG_GUID, MIB, TIB, VhdxBuilder, Zeros, pack_log_entry
from tests.samples.vmdk_builder import Layout, build, build_grains, descriptor_text, stamped

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m"
CANARY_NAME = "canary.raw"
"""A file that every case could read if it were led there: it lies in the folder above."""

Maker = Callable[[Path], None]
"""Puts what is to be opened at a path, and whatever else the case needs beside it."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """One hostile file. `format_name` is what `--format` would say."""

    name: str
    threats: tuple[str, ...]
    format: str
    expect: str
    make: Maker
    format_name: str | None = None

    @property
    def file_name(self) -> str:
        """Under this name the file is made."""
        return f"hostile.{self.format}"


def _case(name: str, threats: str, form: str, expect: str, content: bytes | Maker, **more: str) -> Hostile:
    make = content if callable(content) else _writing(content)
    return Hostile(f"{form}: {name}", tuple(threats.split()), form, expect, make, more.get("format_name"))


def _writing(data: bytes) -> Maker:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def _with(data: bytes, others: Mapping[str, bytes]) -> Maker:
    def make(path: Path) -> None:
        path.write_bytes(data)
        for name, content in others.items():
            (path.parent / name).write_bytes(content)

    return make


def _patched(data: bytes, *patches: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for offset, new in patches:
        changed[offset : offset + len(new)] = new
    return bytes(changed)


# ---- VMDK ----

NAMES = {
    "absolute": "/etc/passwd",
    "dot-dot": f"../{CANARY_NAME}",
    "dot-dot in the middle": f"a/../../{CANARY_NAME}",
    "dot-dot with backslashes": f"..\\{CANARY_NAME}",
    "dot-slash": f"./../{CANARY_NAME}",
    "folder below": "folder/disk.raw",
    "device": "/dev/zero",
    "process": "/proc/self/environ",
    "UNC": "\\\\192.0.2.1\\share\\x",
    "drive": "C:\\x",
    "drive without slash": "C:x",
    "URL": "http://192.0.2.1/x",
    "file URL": "file:///etc/passwd",
    "JSON": "json:{'driver':'file','filename':'/etc/passwd'}",
    "NBD": "nbd://127.0.0.1:1/x",
    "empty": "",
    "dot": ".",
    "two dots": "..",
    "4 KiB": "x" * 4096,
    "256 bytes": "x" * 256,
    "escapes": ESCAPES,
    "direction": "a\u202ewar.raw",
    "homoglyph": "\u0430.raw",
    "fullwidth dots": "\uff0e\uff0e\u2215x",
    "per cent": "%2e%2e%2fcanary.raw",
    "home": "~/x",
    "variable": "$HOME/x",
}


def _flat(name: str, kind: str = "FLAT") -> bytes:
    return esx.descriptor([f'RW 8 {kind} "{name}" 0'], "monolithicFlat").encode()


def _linked(target: str) -> Maker:
    def make(path: Path) -> None:
        path.write_bytes(_flat("link.raw"))
        (path.parent / "link.raw").symlink_to(target)

    return make


def _special(make_it: Callable[[Path], None]) -> Maker:
    def make(path: Path) -> None:
        path.write_bytes(_flat("special.raw"))
        make_it(path.parent / "special.raw")

    return make


def _vmdk() -> Iterator[Hostile]:
    for name, target in NAMES.items():
        missing = name in {"4 KiB", "256 bytes", "direction", "homoglyph", "fullwidth dots", "per cent"}
        expect = "ParentUnavailable" if missing and len(target) < 256 else "UnsafeReference"
        cve = {"absolute": " CVE-2022-47951", "dot-dot": " CVE-2024-40767"}.get(name, "")
        yield _case(f"flat extent, name {name}", "T1" + cve, "vmdk", expect, _flat(target))
    for kind in ("VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"):
        yield _case(f"extent {kind} elsewhere", "T1", "vmdk", "UnsafeReference", _flat("/etc/passwd", kind))
    yield _case("raw device mapping", "T1", "vmdk", "UnsupportedFeature", _flat("/dev/sda", "VMFSRDM"))
    yield _case("link to the folder above", "T1", "vmdk", "UnsafeReference", _linked(f"../{CANARY_NAME}"))
    yield _case("link to a device", "T1 T7", "vmdk", "UnsafeReference", _linked("/dev/zero"))
    yield _case("link to nothing", "T1", "vmdk", "UnsafeReference", _linked("nowhere"))
    yield _case("link to itself", "T1", "vmdk", "UnsafeReference", _linked("link.raw"))
    yield _case("FIFO as extent", "T7", "vmdk", "UnsafeReference", _special(os.mkfifo))
    yield _case("folder as extent", "T7", "vmdk", "UnsafeReference", _special(lambda path: path.mkdir()))
    yield _case("itself as extent", "T1", "vmdk", "UnsafeReference", _flat("hostile.vmdk", "SPARSE"))
    yield _case("itself as flat extent", "T1", "vmdk", "UnsafeReference", _flat("hostile.vmdk"))
    yield from _vmdk_parents()
    yield from _vmdk_numbers()
    for job in (*hostile_vmdk.disagreements(), *hostile_vmdk.entries()):
        threat = "T17" if ": " in job.name else "T18"
        expect = {"right": "reads", "grains": "damaged", "fails": "damaged"}.get(job.expect, job.expect)
        if expect != "survives":
            assert isinstance(job.data, bytes)
            yield _case(job.name, threat, "vmdk", expect, job.data, format_name="vmdk")
    for job in hostile_vmdk.deflated():
        if job.name.startswith("deflate stream") and job.expect != "survives":
            assert isinstance(job.data, bytes)
            yield _case(job.name, "T13", "vmdk", "reads" if job.expect == "right" else "damaged", job.data)


def _vmdk_parents() -> Iterator[Hostile]:
    for name in ("absolute", "dot-dot", "device", "UNC", "drive", "URL", "JSON", "escapes"):
        text = esx.descriptor(['RW 8 SPARSE "hostile.vmdk"'], parent_cid="12345678", hint=NAMES[name])
        data = bytes(build(stamped(8), Layout(grain=8, entries=16, descriptor=text)))
        yield _case(f"parent {name}", "T2", "vmdk", "ParentUnavailable", data)
    text = esx.descriptor(['RW 8 SPARSE "x"'], cid="11111111", parent_cid="11111111", hint="hostile.vmdk")
    loop = bytes(build(stamped(8), Layout(grain=8, entries=16, descriptor=text)))
    yield _case("its own parent", "T2", "vmdk", "CorruptImage", loop)
    other = bytes(build(stamped(8), Layout(grain=8, entries=16)))
    text = esx.descriptor(['RW 8 SPARSE "x"'], parent_cid="12345678", hint="parent.vmdk")
    child = bytes(build(stamped(8), Layout(grain=8, entries=16, descriptor=text)))
    yield _case("parent of another content", "T2", "vmdk", "ParentUnavailable", _with(child, {"parent.vmdk": other}))


def _vmdk_numbers() -> Iterator[Hostile]:
    plain = build(stamped(8 * 40), Layout(grain=8, entries=16))
    zero = (("grainSize", 0), ("numGTEsPerGT", 0), ("capacity", 0))
    for field, value in zero:
        data = bytes(plain.copy().set_field(field, value))
        # Without a capacity the header says that the grains are in the files that its descriptor names.
        expect = "ParentUnavailable" if field == "capacity" else "CorruptImage"
        yield _case(f"{field} 0", "T11 CVE-2014-0142" if field == "grainSize" else "T11", "vmdk", expect, data)
    for field, value, threat in (
        ("grainSize", 2**64 - 1, "T10"),
        ("grainSize", 2**63, "T10"),
        ("grainSize", 3, "T10"),
        ("numGTEsPerGT", 2**32 - 1, "T12"),
        ("numGTEsPerGT", 2**31, "T12"),
        ("numGTEsPerGT", 506, "T12"),
        ("capacity", 2**64 - 1, "T10"),
        ("descriptorSize", 2**55, "T10"),
        ("descriptorOffset", 2**63, "T10"),
        ("gdOffset", 2**63, "T10"),
        ("gdOffset", 0, "T17"),
        ("overHead", 2**63, "T10"),
        ("version", 0xFFFFFFFF, "T18"),
        ("compressAlgorithm", 1, "T18"),
        ("flags", 0xFFFFFFFF, "T18"),
    ):
        built = plain.copy().set_field(field, value)
        expect = {
            ("capacity", 2**64 - 1): "CorruptImage",
            ("version", 0xFFFFFFFF): "UnsupportedFeature",
            ("flags", 0xFFFFFFFF): "UnsupportedFeature",
        }.get((field, value), "TruncatedImage" if value >= 2**55 and field != "grainSize" else "CorruptImage")
        yield _case(f"{field} {value:#x}", threat, "vmdk", expect, bytes(built))
    for name, capacity in (("2 TiB", 1 << 32), ("64 TiB", 1 << 37), ("8 EiB", (1 << 54) - 1)):
        built = build_grains({}, 8, Layout(grain=8, entries=512)).set_field("capacity", capacity)
        yield _case(f"{name} in a few KiB", "T10", "vmdk", "TruncatedImage", bytes(built))
    usual = descriptor_text(8 * 40)
    for name, text in {
        "20,000 extent lines": usual + 'RW 1 SPARSE "x"\n' * 20_000,
        "size of 10^40": usual.replace("RW 320", "RW " + "9" * 40),
        "escapes in an extent line": usual + f"RW {ESCAPES}\n",
    }.items():
        data = bytes(build(stamped(8 * 40), Layout(grain=8, entries=16, descriptor=text)))
        yield _case(f"descriptor with {name}", "T10" if "escapes" not in name else "T19", "vmdk", "CorruptImage", data)
    for name, kind in {
        "escapes": ESCAPES, "carriage return": "x\ry", "direction": "\u202e", "half a character": "\udcff",
        "5,000 characters": "x" * 5000,
    }.items():  # fmt: skip
        data = bytes(
            build(stamped(320), Layout(grain=8, entries=16, descriptor=usual.replace("monolithicSparse", kind)))
        )
        yield _case(f"type of {name}", "T19", "vmdk", "reads", data)
    huge = {"FLAT of 2^63": 'RW 18014398509481984 FLAT "x.raw" 0', "ZERO of 2^64": "RW 36028797018963968 ZERO"}
    for name, line in huge.items():
        data = esx.descriptor([line], "custom").encode()
        yield _case(f"extent {name}", "T10", "vmdk", "CorruptImage", _with(data, {"x.raw": bytes(512)}))
    yield _case(
        "flat extent that is too short", "T10", "vmdk", "TruncatedImage",
        _with(esx.descriptor(['RW 2048 FLAT "x.raw" 0'], "monolithicFlat").encode(), {"x.raw": bytes(512)}),
    )  # fmt: skip


# ---- VHD ----


def _vhd() -> Iterator[Hostile]:
    for name, (builder, _) in hostile_vhd.HOSTILE_PARENTS.items():
        yield _case(f"parent {name}", "T2", "vhd", "ParentUnavailable", builder().build())
    loop = VhdBuilder(64 * KIB, 4096, parent_id=vhd.UNIQUE_ID)
    loop.locators = [(b"W2ru", ".\\hostile.vhd".encode("utf-16-le"))]
    yield _case("its own parent", "T2", "vhd", "CorruptImage", loop.build())
    layers, _ = vhd.chain(16, 64 * KIB, 4096)
    yield _case("chain of 16", "T2", "vhd", "reads", _with(layers[0][1], dict(layers[1:])))
    layers, _ = vhd.chain(17, 64 * KIB, 4096)
    yield _case("chain of 17", "T2", "vhd", "CorruptImage", _with(layers[0][1], dict(layers[1:])))
    one, two = (VhdBuilder(64 * KIB, 4096, parent_id=UUID(int=9 - n), unique_id=UUID(int=n)) for n in (4, 5))
    one.locators = [(b"W2ru", ".\\two.vhd".encode("utf-16-le"))]
    two.locators = [(b"W2ru", ".\\hostile.vhd".encode("utf-16-le"))]
    yield _case("parent of its parent", "T2", "vhd", "CorruptImage", _with(one.build(), {"two.vhd": two.build()}))
    child = VhdBuilder(64 * KIB, 4096, parent_id=UUID(int=77))
    child.locators = [(b"W2ru", ".\\parent.vhd".encode("utf-16-le"))]
    wrong = vhd.filled(64 * KIB, 4096)[0].build()
    yield _case("parent of another id", "T2", "vhd", "ParentUnavailable", _with(child.build(), {"parent.vhd": wrong}))
    child = hostile_vhd.parent_at(f"{ESCAPES}\u202egnp.vhd")
    yield _case("parent with escapes", "T19 T2", "vhd", "ParentUnavailable", child.build())

    def changed(name: str, threats: str, expect: str, **values: dict[str, int]) -> Hostile:
        builder, _ = vhd.filled(64 * KIB, 4096)
        builder.header |= values.get("header", {})
        builder.footer |= values.get("footer", {})
        builder.bat |= {int(number): entry for number, entry in values.get("bat", {}).items()}
        return _case(name, threats, "vhd", expect, builder.build())

    yield changed("block size 0", "T11 CVE-2014-0142", "CorruptImage", header={"block_size": 0})
    yield changed("block size 511", "T11", "CorruptImage", header={"block_size": 511})
    yield changed("block size 2^31", "T10", "CorruptImage", header={"block_size": 2**31})
    yield changed(
        "max_table_entries 2^32 - 1", "T10 CVE-2014-0144", "TruncatedImage", header={"max_table_entries": 2**32 - 1}
    )
    yield changed("max_table_entries 2^30", "T10 T12", "TruncatedImage", header={"max_table_entries": 2**30})
    yield changed("max_table_entries 0", "T10", "CorruptImage", header={"max_table_entries": 0})
    yield changed("size 2^64 - 1", "T10", "CorruptImage", footer={"current_size": 2**64 - 1})
    yield changed("size 2^63", "T10", "CorruptImage", footer={"current_size": 2**63})
    yield changed("size 0", "T11", "CorruptImage", footer={"current_size": 0})
    yield changed("header at 2^64 - 1", "T10", "TruncatedImage", footer={"data_offset": 2**64 - 1})
    yield changed("header at 2^63", "T10", "TruncatedImage", footer={"data_offset": 2**63})
    yield changed("table at 2^64 - 512", "T10", "TruncatedImage", header={"table_offset": 2**64 - 512})
    yield changed("table over the header", "T17", "damaged", header={"table_offset": 512})
    yield changed("disk type 5", "T18", "UnsupportedFeature", footer={"disk_type": 5})
    yield changed("block over the footer's copy", "T17", "damaged", bat={"0": 0})
    yield changed("block over the table", "T17", "damaged", bat={"0": 3})
    yield changed("block past the end", "T17", "damaged", bat={"0": 2**31 - 1})
    yield changed("block near 2^32", "T17", "damaged", bat={"0": 2**32 - 2})
    good = vhd.filled(64 * KIB, 4096)[0].build()
    footer = good[-512:]
    yield _case(
        "both footers with wrong sums",
        "T18",
        "vhd",
        "ChecksumMismatch",
        _patched(good, (64, b"\0" * 4), (len(good) - 448, b"\0" * 4)),
    )
    yield _case(
        "copy of the footer of another size",
        "T18",
        "vhd",
        "CorruptImage",
        vhd.resealed(footer, vhd.FOOTER_FIELDS, current_size=32 * KIB) + good[512:],
    )
    yield _case("cut in a block", "T17", "vhd", "damaged", good[:-5000])
    fixed = vhd.fixed(stamped(16))
    yield _case(
        "fixed, size past the file",
        "T10",
        "vhd",
        "TruncatedImage",
        fixed[:-512] + vhd.resealed(fixed[-512:], vhd.FOOTER_FIELDS, current_size=2**40),
    )
    yield _case("footer alone", "T10", "vhd", "TruncatedImage", fixed[-512:])


# ---- VHDX ----


def _disk(**choices: object) -> VhdxBuilder:
    builder = VhdxBuilder(4 * MIB, **choices)  # type: ignore[arg-type]  # a plain table of keywords
    builder.put(0, b"\xaa" * 4096)
    return builder


def _sparse(builder: VhdxBuilder) -> Maker:
    def make(path: Path) -> None:
        pieces, size = builder.all_pieces()
        with path.open("wb") as file:
            for offset, data in pieces.items():
                file.seek(offset)
                file.write(data[: max(size - offset, 0)])
            file.truncate(size)

    return make


def _vhdx() -> Iterator[Hostile]:
    def case(name: str, threats: str, expect: str, builder: VhdxBuilder) -> Hostile:
        return _case(name, threats, "vhdx", expect, _sparse(builder))

    def with_item(guid: UUID, code: str, *values: int) -> VhdxBuilder:
        builder = _disk()
        builder.item(guid).data = struct.pack("<" + code, *values)
        return builder

    for size in (0, 1, 512 * KIB, 512 * MIB, 3 * MIB, 2**32 - 1):
        cve = "T11 CVE-2014-0148" if size == 0 else "T10"
        yield case(f"block size {size:#x}", cve, "CorruptImage", with_item(vhdx.FILE_PARAMETERS, "II", size, 0))
    for size in (0, 1, 511, 2**32 - 1):
        cve = "T11 CVE-2014-0148" if size == 0 else "T11"
        yield case(f"sector size {size:#x}", cve, "CorruptImage", with_item(vhdx.LOGICAL_SECTOR_SIZE, "I", size))
    for size in (0, 513, 64 * TIB + MIB, 2**63, 2**64 - 512):
        yield case(f"virtual size {size:#x}", "T10", "CorruptImage", with_item(vhdx.VIRTUAL_DISK_SIZE, "Q", size))
    yield case("64 TiB with a table of 1 MiB", "T10", "CorruptImage", with_item(vhdx.VIRTUAL_DISK_SIZE, "Q", 64 * TIB))
    for number, (name, expect) in {2**32 - 1: ("most", "CorruptImage"), 2048: ("one too many", "CorruptImage")}.items():
        builder = _disk()
        regions = builder.regions
        pieces = {offset: vhdx.pack_region_table(regions, count=number) for offset in (192 * KIB, 256 * KIB)}
        builder.pieces |= pieces
        yield case(f"regions, {name}", "T12", expect, builder)
    for name, entry, expect in (
        ("BAT over the header", (vhdx.BAT_GUID, 0, MIB, 1), "CorruptImage"),
        ("BAT past the end", (vhdx.BAT_GUID, 1 << 40, MIB, 1), "TruncatedImage"),
        ("BAT of 4 GiB", (vhdx.BAT_GUID, 3 * MIB, 2**32 - MIB, 1), "damaged"),
        ("BAT not aligned", (vhdx.BAT_GUID, 3 * MIB + 512, MIB, 1), "CorruptImage"),
        ("BAT near 2^64", (vhdx.BAT_GUID, 2**64 - MIB, MIB, 1), "TruncatedImage"),
        ("BAT over the metadata", (vhdx.BAT_GUID, 2 * MIB, MIB, 1), "CorruptImage"),
        ("BAT over the log", (vhdx.BAT_GUID, MIB, MIB, 1), "CorruptImage"),
        ("unknown and required", (vhdx.UNKNOWN_GUID, 3 * MIB, MIB, 1), "UnsupportedFeature"),
    ):
        builder = _disk()
        builder.regions[0] = entry
        yield case(name, "T17", expect, builder)
    for name, field, value in (
        ("offset past the region", "offset", 2 * MIB),
        ("offset in the table", "offset", 32),
        ("length past the region", "length", MIB),
        ("length 0", "length", 0),
    ):
        builder = _disk()
        setattr(builder.item(vhdx.VIRTUAL_DISK_SIZE), field, value)
        yield case(f"metadata item with {name}", "T12", "CorruptImage", builder)
    for name, stored in (
        ("over the header", 6),
        ("past the end", 6 | 1 << 50),
        ("over the BAT", 6 | 3 * MIB),
        ("over the log", 6 | MIB),
        ("of state 4", 4 | 5 * MIB),
        ("of state 7 without a parent", 7 | 5 * MIB),
    ):
        builder = _disk()
        builder.bat[0] = stored
        yield case(f"block {name}", "T17", "damaged", builder)
    yield from _vhdx_logs(case)
    builder = _disk()
    builder.headers[0] = builder.headers[1]
    yield case("two equal headers", "T18", "reads", builder)
    builder = _disk()
    builder.headers = [vhdx.pack_header(sequence_number=7, log_length=2 * MIB), vhdx.pack_header(sequence_number=7)]
    yield case("two headers of one number that differ", "T18", "CorruptImage", builder)
    builder = _disk()
    builder.headers = [bytes(4096), bytes(4096)]
    yield case("no header", "T18", "CorruptImage", builder)
    builder = _disk()
    builder.pieces[192 * KIB] = builder.pieces[256 * KIB] = bytes(64 * KIB)
    yield case("no region table", "T18", "CorruptImage", builder)
    parent = UUID(int=5)
    for name in ("absolute", "dot-dot", "UNC", "URL", "device", "escapes"):
        builder = _disk(locator=vhdx.locator_for(parent, NAMES[name], NAMES[name], NAMES[name]))
        yield case(f"parent {name}", "T2", "ParentUnavailable", builder)
    builder = _disk(locator=vhdx.locator_for(vhdx.DATA_WRITE_GUID, ".\\hostile.vhdx"))
    yield case("its own parent", "T2", "CorruptImage", builder)
    builder = _disk(locator=vhdx.pack_locator([("parent_linkage", "x")], count=65535))
    yield case("locator of 65,535 pairs", "T12", "CorruptImage", builder)


def _vhdx_logs(case: Callable[[str, str, str, VhdxBuilder], Hostile]) -> Iterator[Hostile]:
    def with_log(entry: bytes, **header: object) -> VhdxBuilder:
        builder = VhdxBuilder(4 * MIB, log_guid=LOG_GUID)
        builder.put(0, b"\xaa" * 4096)
        builder.pieces[MIB] = entry
        if header:
            builder.headers = [vhdx.pack_header(sequence_number=9, log_guid=LOG_GUID, **header)] * 2  # type: ignore[arg-type]
        return builder

    def entry(*updates: Zeros | vhdx.Sector, **more: int) -> bytes:
        return pack_log_entry(updates, **{"sequence_number": 1, "tail": 0, **more})  # type: ignore[arg-type]

    zero = Zeros(4 * MIB, 4096)
    yield case("log without entries", "T16", "CorruptImage", with_log(bytes(4096)))
    yield case("zeroes of 2^63", "T16", "CorruptImage", with_log(entry(Zeros(4 * MIB, 2**63))))
    yield case("zeroes of 3 bytes", "T16", "CorruptImage", with_log(entry(Zeros(4 * MIB, 3))))
    yield case("zeroes over the log", "T16", "CorruptImage", with_log(entry(Zeros(MIB, 4096))))
    yield case("zeroes over the header", "T16", "CorruptImage", with_log(entry(Zeros(64 * KIB, 4096))))
    yield case("zeroes at 2^64 - 4096", "T16", "CorruptImage", with_log(entry(Zeros(2**64 - 4096, 8192))))
    yield case("file that should be larger", "T16", "TruncatedImage", with_log(entry(zero, flushed=1 << 40)))
    yield case("file that grows to 2^63", "T16", "CorruptImage", with_log(entry(zero, last=2**63)))
    yield case("descriptors, 2^32 - 1", "T16 T12", "CorruptImage", with_log(entry(zero, count=2**32 - 1)))
    yield case("entry of 2^32 - 4096", "T16", "CorruptImage", with_log(entry(zero, length=2**32 - 4096)))
    yield case("tail outside of the log", "T16", "CorruptImage", with_log(entry(zero, tail=MIB)))
    yield case(
        "entry of another log",
        "T16",
        "CorruptImage",
        with_log(pack_log_entry([zero], sequence_number=1, tail=0, log_guid=UUID(int=3))),
    )
    yield case("entry with a wrong sum", "T16", "CorruptImage", with_log(_patched(entry(zero), (100, b"\xff"))))
    yield case("log of 0 bytes", "T16", "CorruptImage", with_log(entry(zero), log_length=0))
    yield case("log past the end", "T16", "TruncatedImage", with_log(entry(zero), log_offset=1 << 40))
    yield case("log over the header", "T16", "CorruptImage", with_log(entry(zero), log_offset=0))
    yield case("log of version 1", "T16", "UnsupportedFeature", with_log(entry(zero), log_version=1))
    yield case("log that is right", "T16", "reads", with_log(entry(zero, flushed=5 * MIB, last=5 * MIB)))


# ---- qcow2, qcow, VDI ----


def _qcow2() -> Iterator[Hostile]:
    def case(name: str, threats: str, expect: str, data: bytes) -> Hostile:
        return _case(name, threats, "qcow2", expect, data)

    plain = Qcow2Builder(64 * KIB, cluster_bits=12)
    plain.put(0, qcow2.stamped(4096))
    good = bytes(plain.build())
    for name, cves in (
        ("absolute", "CVE-2015-1850 CVE-2015-1851"),
        ("dot-dot", "CVE-2015-1851"),
        ("JSON", "CVE-2024-32498"),
        ("NBD", ""),
        ("URL", ""),
        ("device", ""),
        ("escapes", ""),
    ):
        backed = bytes(Qcow2Builder(64 * KIB, cluster_bits=12, backing_file=NAMES[name].encode()).build())
        yield case(f"backing file {name}", f"T3 {cves}", "UnsafeReference", backed)
    external = bytes(
        Qcow2Builder(
            64 * KIB, cluster_bits=12, incompatible=qcow2.EXTERNAL_DATA,
            extensions=qcow2.pack_extension(0x44415441, b"/etc/passwd"),
        ).build()
    )  # fmt: skip
    yield case("external data file", "T3 CVE-2024-32498", "UnsupportedFeature", external)
    quoted = external.replace(b"/etc/passwd", b"json:{'a':1")
    yield case("external data file in JSON", "T3 CVE-2024-4467", "UnsupportedFeature", quoted)
    itself = bytes(
        Qcow2Builder(64 * KIB, cluster_bits=12, backing_file=b"hostile.qcow2", backing_format=b"qcow2").build()
    )
    yield case("its own backing file", "T3 T2", "CorruptImage", itself)
    odd = bytes(Qcow2Builder(64 * KIB, cluster_bits=12, backing_file=b"x", backing_format=ESCAPES.encode()).build())
    yield case("backing format of escapes", "T19 T3", "CorruptImage", odd)
    for fields, threats, expect in (
        ({"l1_size": 2**32 - 1}, "T10 CVE-2014-0143", "CorruptImage"),
        ({"l1_size": 0}, "T10", "CorruptImage"),
        ({"size": 2**63}, "T10 CVE-2014-0147", "CorruptImage"),
        ({"size": 2**64 - 1}, "T10 CVE-2014-0147", "CorruptImage"),
        ({"header_length": 2**32 - 8}, "T10 CVE-2014-0144", "CorruptImage"),
        ({"header_length": 100}, "T10 CVE-2014-0144", "CorruptImage"),
        ({"backing_file_offset": 2**63, "backing_file_size": 10}, "T10 CVE-2014-0144", "CorruptImage"),
        ({"backing_file_offset": 512, "backing_file_size": 2**32 - 1}, "T10 CVE-2014-0145", "CorruptImage"),
        ({"nb_snapshots": 2**32 - 1, "snapshots_offset": 2**63}, "T10 CVE-2014-0145", "CorruptImage"),
        ({"nb_snapshots": 1, "snapshots_offset": 0}, "T10 CVE-2014-0146", "reads"),
        ({"refcount_table_offset": 2**64 - 1}, "T10 CVE-2014-0143", "CorruptImage"),
        ({"cluster_bits": 0}, "T11", "CorruptImage"),
        ({"cluster_bits": 63}, "T11", "UnsupportedFeature"),
        ({"cluster_bits": 2**32 - 1}, "T11", "UnsupportedFeature"),
        ({"l1_table_offset": 2**63}, "T10", "TruncatedImage"),
        ({"l1_table_offset": 0}, "T17", "CorruptImage"),
        ({"crypt_method": 1}, "T3", "UnsupportedFeature"),
        ({"incompatible_features": 2**63}, "T3", "UnsupportedFeature"),
        ({"version": 99}, "T3", "UnsupportedFeature"),
    ):
        title = ", ".join(f"{field} {value:#x}" for field, value in fields.items())
        yield case(title, threats, expect, qcow2.patched(good, **fields))
    extension = qcow2.pack_extension(0x12345678, b"", length=2**31)
    long = bytes(Qcow2Builder(64 * KIB, cluster_bits=12, extensions=extension).build())
    yield case("header extension of 2 GiB", "T10 CVE-2014-0144", "CorruptImage", long)
    for name, entry, threats in (
        ("over the header", COPIED, "T17"),
        ("over the L1 table", 2 * 4096 | COPIED, "T17"),
        ("past the end", 1 << 50 | COPIED, "T17"),
        ("with reserved bits", 1 << 58 | 4096 * 4, "T17"),
        ("compressed, past the end", COMPRESSED | 1 << 50, "T17"),
        ("not aligned", 4096 * 4 + 512 | COPIED, "T17"),
    ):
        built = plain.build()
        built.set_word(built.entry_offsets[0], entry)
        expect = "reads" if name == "over the header" else "damaged"
        yield case(f"cluster {name}", threats, expect, bytes(built))
    for name, data in (
        ("64 MiB", zlib.compress(bytes(64 * MIB), 9)[2:-4]),
        ("one byte too many", qcow2.deflated(bytes(4097))),
    ):
        bomb = Qcow2Builder(64 * KIB, cluster_bits=12)
        bomb.clusters[0] = qcow2.Cluster(record=data[:8192])
        yield case(f"compressed cluster of {name}", "T13", "damaged", bytes(bomb.build()))
    old = struct.pack(">4sIQIIQBBHI", b"QFI\xfb", 1, 0, 0, 0, 1 << 20, 31, 27, 0, 0).ljust(4096, b"\0")
    yield case("qcow of version 1, cluster_bits 31", "T3 CVE-2014-0222", "UnsupportedFeature", old)
    old = struct.pack(">4sIQIIQBBHI", b"QFI\xfb", 1, 0, 0, 0, 2**63, 12, 9, 0, 0).ljust(4096, b"\0")
    yield case("qcow of version 1, size 2^63", "T3 CVE-2014-0223", "UnsupportedFeature", old)


def _vdi() -> Iterator[Hostile]:
    builder = VdiBuilder(40 * KIB, block_size=4096)
    for block in (3, 0, 1, 7):
        builder.stored[block] = vdi.stamped(4096, block)
    good = builder.build()
    for fields, threats, expect in (
        ({"cBlocks": 2**32 - 1}, "T10 CVE-2014-0144", "CorruptImage"),
        ({"cBlocks": 0x1FFFFF81}, "T10 CVE-2014-0144", "CorruptImage"),
        ({"cBlocks": 1}, "T10", "CorruptImage"),
        ({"cbBlock": 0}, "T11", "CorruptImage"),
        ({"cbBlock": 3}, "T11", "CorruptImage"),
        ({"cbBlock": 2**32 - 1}, "T10", "CorruptImage"),
        ({"cbBlockExtra": 2**32 - 1}, "T10", "UnsupportedFeature"),
        ({"cbDisk": 2**63}, "T10", "CorruptImage"),
        ({"cbDisk": 2**64 - 1}, "T10", "CorruptImage"),
        ({"offBlocks": 2**32 - 512}, "T10", "CorruptImage"),
        ({"offBlocks": 0}, "T17", "CorruptImage"),
        ({"offData": 0}, "T17", "CorruptImage"),
        ({"u32Version": 99}, "T3", "UnsupportedFeature"),
        ({"u32Type": 99}, "T3", "CorruptImage"),
    ):
        title = ", ".join(f"{field} {value:#x}" for field, value in fields.items())
        yield _case(title, threats, "vdi", expect, vdi.patched(good, **fields))
    for name, entry in (("past the end", 1000), ("near 2^32", 2**32 - 3)):
        yield _case(f"block {name}", "T17", "vdi", "damaged", _patched(good, (512, struct.pack("<I", entry))))


# ---- appliances ----


def _ova() -> Iterator[Hostile]:
    cves = {
        "size-negative-binary": "CVE-2025-8194",
        "size-minus-one-binary": "CVE-2025-8194",
        "long-name-of-6-gib": "CVE-2026-11972",
        "pax-of-6-gib": "CVE-2026-11972",
        "symbolic-link-and-member-below": "CVE-2025-4517 CVE-2025-4138",
        "hard-link": "CVE-2025-4138",
    }
    sizes = ("size", "pax", "long", "global", "too-many", "directory", "empty", "one-byte", "zeros", "ones", "wrong")
    unrecognised = {"empty", "one-byte-short-of-a-header", "zeros", "ones", "wrong-checksum"}
    for name, (data, error) in appliances.TARS.items():
        threat = "T15" if name.startswith(sizes) else "T5"
        named = None if name not in unrecognised else "ova"
        content = _case(f"tar {name}", f"{threat} {cves.get(name, '')}", "ova", error, data)
        yield dataclasses.replace(content, format_name=named)
    for name, (data, error) in appliances.XMLS.items():
        archive = appliances.member(b"vm.ovf", data) + appliances.END
        yield _case(f"descriptor {name}", "T14", "ova", error, archive)
    for number, href in enumerate(appliances.HREFS):
        error = appliances.CASES[f"href-{number}"][1]
        archive = appliances.member(b"vm.ovf", appliances.descriptor_with(href)) + appliances.END
        shown = href[:24].encode("unicode_escape").decode()
        yield _case(f"href {number} {shown!r}", "T5 T19" if "\u202e" in href else "T5", "ova", error, archive)
    for name, data in appliances.damaged_gzip():
        archive = appliances.member(b"vm.ovf", appliances.descriptor_with("x")) + appliances.member(b"x", data)
        cut = name in {"cut", "second-member", "bomb-that-is-cut"}
        expect = "TruncatedImage" if cut else "ChecksumMismatch" if name == "checksum" else "CorruptImage"
        yield _case(f"gzip {name}", "T13", "ova", expect, archive + appliances.END)
    for href in ("/etc/passwd", f"../{CANARY_NAME}", "http://192.0.2.1/x", "file:///etc/passwd", "%2e%2e/canary.raw"):
        yield _case(f"href beside {href}", "T5", "ovf", "UnsafeReference", appliances.descriptor_with(href))


# ---- what leads out of the folder to a file that is there ----


def _naming(name: str) -> dict[str, bytes]:
    """For each way to name a file in an image: the image that names `name`."""
    parent = UUID(int=5)
    vhd_child = VhdBuilder(64 * KIB, 4096, parent_id=parent, parent_name=name)
    vhd_child.locators = [(code, name.encode("utf-16-le")) for code in (b"W2ku", b"W2ru")]
    text = esx.descriptor(['RW 8 SPARSE "hostile.vmdk"'], parent_cid="12345678", hint=name)
    return {
        "vmdk: extent": _flat(name),
        "vmdk: parent": bytes(build(stamped(8), Layout(grain=8, entries=16, descriptor=text))),
        "vhd: parent": vhd_child.build(),
        "vhdx: parent": _disk(locator=vhdx.locator_for(parent, name, name, name)).build(),
        "qcow2: backing file": bytes(Qcow2Builder(64 * KIB, cluster_bits=12, backing_file=name.encode()).build()),
        "ovf: file": appliances.descriptor_with(name),
    }


def _leading_out() -> Iterator[Hostile]:
    for kind in _naming("x"):
        form, _, role = kind.partition(": ")
        parent = {"vmdk: parent", "vhd: parent", "vhdx: parent"}
        threat = "T2" if kind in parent else "T3" if form == "qcow2" else "T5" if form == "ovf" else "T1"

        def absolute(path: Path, kind: str = kind) -> None:
            path.write_bytes(_naming(str(path.parent.parent.absolute() / CANARY_NAME))[kind])

        def linked(path: Path, kind: str = kind) -> None:
            path.write_bytes(_naming("link.raw")[kind])
            (path.parent / "link.raw").symlink_to(path.parent.parent.absolute() / CANARY_NAME)

        refusal = "ParentUnavailable" if kind in parent else "UnsafeReference"
        yield _case(f"{role}, absolute path of the canary", threat, form, refusal, absolute)
        yield _case(f"{role}, link to the canary", threat, form, "UnsafeReference", linked)


# ---- what is not what it seems ----


def _raw() -> Iterator[Hostile]:
    mbr = boot_record([(0x80, 0x83, 1, 62)])
    disk = mbr + stamped(63)
    sparse = bytes(build(stamped(16), Layout(grain=8, entries=16)))
    q = bytes(Qcow2Builder(64 * KIB, cluster_bits=9).build())
    fixed_tail = vhd.fixed(bytes(512))[-512:]
    inside = {
        "VMDK": (sparse, "CVE-2024-40767"),
        "VMDK descriptor": (_flat("/etc/passwd"), "CVE-2026-24708"),
        "qcow2": (q, "CVE-2010-3851 CVE-2008-2004"),
        "VHDX": (b"vhdxfile" + bytes(504), ""),
        "VDI": (VdiBuilder(40 * KIB, block_size=4096).build(), ""),
    }
    for name, (head, cves) in inside.items():
        whole = head[:510].ljust(510, b"\0") + b"\x55\xaa" + disk[512:]
        yield _case(f"{name} over a partition table", f"T4 {cves}", "raw", "UnknownFormat", whole)
        yield _case(f"{name} over a partition table, as raw", f"T4 {cves}", "raw", "reads", whole, format_name="raw")
    for name in ("VMDK", "qcow2", "VHDX", "VDI"):
        head = inside[name][0]
        data = head.ljust(64 * KIB, b"\0")
        both = data + vhd.fixed(data)[-512:]
        yield _case(f"{name} with the footer of a fixed VHD", "T4", "raw", "UnknownFormat", both)
    archive = appliances.member(b"vm.ovf", appliances.descriptor_with("x")) + appliances.END
    yield _case("tar with the footer of a fixed VHD", "T4", "raw", "UnknownFormat", archive + fixed_tail)
    for name, magic in (
        ("QED", b"QED\0"), ("Parallels", b"WithoutFreeSpace"), ("xz", b"\xfd7zXZ\0"), ("zip", b"PK\x03\x04"),
        ("zstd", b"\x28\xb5\x2f\xfd"), ("gzip", b"\x1f\x8b\x08"),
    ):  # fmt: skip
        yield _case(f"{name}, which is not read", "T3 T4", "raw", "UnsupportedFeature", magic.ljust(4096, b"\1"))
    yield _case("empty file", "T4", "raw", "UnknownFormat", b"")
    yield _case("FIFO", "T7", "raw", "SourceError", os.mkfifo)
    yield _case("folder", "T7", "raw", "SourceError", lambda path: path.mkdir())
    yield _case("character device", "T7", "raw", "SourceError", lambda path: path.symlink_to("/dev/zero"))
    yield _case("link to nothing", "T7", "raw", "SourceNotFound", lambda path: path.symlink_to("nowhere"))
    yield from _partitions(mbr)


def _partitions(mbr: bytes) -> Iterator[Hostile]:
    def case(name: str, threats: str, data: bytes) -> Hostile:
        return _case(name, threats, "raw", "reads", data)

    size = 512 * 4096
    top = 2**32 - 1
    yield case("partition of 2 TiB at the end of 2 TiB", "T10", boot_record([(0, 0x83, top, top)]).ljust(size, b"\0"))
    loop = _patched(bytes(size), (0, boot_record([(0, 5, 100, 1000)])), (51200, boot_record([(0, 5, 0, 1000)])))
    yield case("logical partitions in a circle", "T10", loop)
    chain = bytearray(size)
    put_bytes(chain, 0, boot_record([(0, 5, 1, 4000)]))
    for lba in range(1, 4000):
        put_bytes(chain, lba * 512, boot_record([(0, 0x83, 0, 1), (0, 5, lba, 1)]))
    yield case("4,000 logical partitions", "T10 T12", bytes(chain))
    array = bytes(128 * 128)
    for name, more in (
        ("2^32 - 1 entries", {"count": 2**32 - 1}),
        ("entries of 2^31 bytes", {"entry_size": 2**31}),
        ("entries of 0 bytes", {"entry_size": 0, "count": 128}),
        ("header of 2^32 - 1 bytes", {"header_size": 92}),
        ("entries at 2^64 - 1", {"entry_lba": 2**64 - 1}),
    ):
        data = gpt_disk()
        fields = {"alternate": 2047, "entry_lba": 2, **more}
        packed = gpt_header(array, 1, **fields)  # type: ignore[arg-type]  # a plain table of keywords
        if name.startswith("header"):
            packed = packed[:12] + struct.pack("<I", 2**32 - 1) + packed[16:]
        put_bytes(data, 512, packed)
        yield case(f"GPT with {name}", "T12 T11" if "0 bytes" in name else "T12", bytes(data))
    data = gpt_disk()
    put_bytes(data, 1024 + 56, "\x1b]0;x\x07\u202e".encode("utf-16-le"))
    array = bytes(data[1024 : 1024 + 128 * 128])
    put_bytes(data, 512, gpt_header(array, 1, alternate=2047, entry_lba=2))
    yield case("GPT with a name of escapes", "T19 T18", bytes(data))
    data = gpt_disk()
    data[600] ^= 1
    data[len(data) - 300] ^= 1
    yield case("GPT of which both copies are damaged", "T18", bytes(data))
    yield case("MBR with all types protective", "T18", boot_record([(0, 0xEE, 1, top)] * 4).ljust(size, b"\0"))


def catalogue() -> list[Hostile]:
    """Return every hostile file, names unique."""
    cases = [*_vmdk(), *_vhd(), *_vhdx(), *_qcow2(), *_vdi(), *_ova(), *_leading_out(), *_raw()]
    assert len({case.name for case in cases}) == len(cases)
    return cases
