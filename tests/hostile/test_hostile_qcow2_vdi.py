"""qcow2 and VDI files made to do harm: every field and table entry at its extremes, bombs, shared tables, cut files.

Whatever a file says, opening, mapping, reading and verifying it end in a result or in one DiskfsError, within two
seconds and 64 MiB, and no file is opened that is not beside the image.
"""

import contextlib
import itertools
import random
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from diskfs_formats.driver import DiskImage, FormatDriver
from diskfs_formats.errors import CorruptImage, DiskfsError, ParentUnavailable
from diskfs_formats.extents import ExtentKind
from diskfs_formats.findings import Severity
from diskfs_formats.qcow2 import Qcow2Driver
from diskfs_formats.raw import RawDriver
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.vdi import VdiDriver
from tests.samples import qcow2_builder as qcow2
from tests.samples import vdi_builder as vdi
from tests.samples.qcow2_builder import ALL, COMPRESSED, COPIED, ZSTD, Qcow2Builder, pack_extension
from tests.samples.vhdx_builder import SparseSource

SECONDS = 2.0
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
MEMORY = 64 * MIB
REQUESTS = 16
"""Requests for opening, whatever a file claims."""
EXTREMES = (0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
BASE = qcow2.stamped(40 * KIB, 99)


class OneBase:
    """RelatedFiles with one file beside the image; any other name is not there."""

    def open(self, file_name: str, /) -> ByteSource:
        raise ParentUnavailable(f"{file_name!r} is not here")

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        if list(file_names) == ["base"] and format_name == "raw":
            return RawDriver().open(MemorySource(BASE, "base"), self)
        raise ParentUnavailable(f"{file_names!r} is not here")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail if what is done within takes too long, or lets the process grow too much at any moment."""
    # The kernel's high-water mark starts anew: it costs nothing, where tracing each allocation would.
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _peak_memory(), time.process_time()
    yield
    seconds, grown = time.process_time() - start, _peak_memory() - before
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert grown < MEMORY, f"{grown / MIB:.0f} MiB"


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmHWM:"))


def exercise(driver: FormatDriver, source: SparseSource, *, verify: bool = True) -> str:
    """Open, map, read and verify; return the error of opening, or nothing. Only DiskfsError may come out."""
    with bounded():
        try:
            image = driver.open(source, OneBase())
        except DiskfsError as error:
            message = str(error)
            assert source.requests <= REQUESTS
            assert message.isprintable(), message
            return message
        assert source.requests <= REQUESTS
        with contextlib.suppress(DiskfsError):
            mapped(image)
        read(image)
        if verify:
            assert len(list(itertools.islice(driver.check(source, OneBase()), 4000))) < 4000
    image.close()
    return ""


def mapped(image: DiskImage) -> None:
    end = 0
    for extent in itertools.islice(image.extents(), 500):
        assert extent.offset == end
        assert extent.length > 0
        end = extent.end


def read(image: DiskImage) -> None:
    unit = image.info.unit_size
    for at in (0, unit, 2 * unit, 3 * unit, 5 * unit, image.size // 2, image.size):
        offset = min(max(at - 512, 0), image.size)
        length = min(4096, image.size - offset)
        for use in (image.read_at, getattr(image, "read_if_ready", image.read_at)):
            with contextlib.suppress(DiskfsError):
                found = use(offset, length)
                assert found is None or len(found) == length


def of_bytes(data: bytes) -> SparseSource:
    return SparseSource({0: data}, len(data), "hostile")


# ---- qcow2 ----


def victim(**choices: object) -> bytes:
    """A small disk with every kind of cluster."""
    builder = Qcow2Builder(9 * KIB * (4 if choices.get("extended") else 1), **choices)  # type: ignore[arg-type]
    builder.put(0, qcow2.stamped(builder.cluster_size, 1))
    builder.put_compressed(1, qcow2.stamped(builder.cluster_size, 2))
    if builder.version >= 3:
        builder.put_zero(2, data=b"\xee" * builder.cluster_size)
    if builder.extended:
        builder.put(0, qcow2.stamped(builder.cluster_size, 3), 0x0000_00FF_FFFF_0000)
    return bytes(builder.build())


VICTIMS = {
    "version 2": victim(version=2, cluster_bits=10, backing_file=b"base"),
    "version 3": victim(cluster_bits=10, backing_file=b"base", backing_format=b"raw"),
    "zstd": victim(cluster_bits=10, compression_type=ZSTD),
    "extended": victim(cluster_bits=14, extended=True, compression_type=ZSTD),
}


@pytest.mark.parametrize("name", VICTIMS)
def test_every_header_field_of_a_qcow2_at_its_extremes(name: str) -> None:
    data = VICTIMS[name]
    assert exercise(Qcow2Driver(), of_bytes(data)) == ""
    for field, (_, code) in qcow2.HEADER_FIELDS.items():
        if name == "version 2" and qcow2.HEADER_FIELDS[field][0] >= 72:
            continue
        limit = 1 << 8 * struct.calcsize(f">{code}")
        for value in {
            *(value for value in EXTREMES if value < limit),
            *(1 << bit for bit in range(limit.bit_length() - 1)),
        }:
            exercise(Qcow2Driver(), of_bytes(qcow2.patched(data, **{field: value})))


def test_pairs_of_header_fields_that_size_tables() -> None:
    data = VICTIMS["version 3"]
    sizes = (0, 1, 512, 2**32, 2**56, 2**63, 2**64 - 1)
    for bits, l1_size, size in itertools.product((9, 14, 21), (0, 1, 2**16, 2**22, 2**32 - 1), sizes):
        exercise(Qcow2Driver(), of_bytes(qcow2.patched(data, cluster_bits=bits, l1_size=l1_size, size=size)))


@pytest.mark.parametrize("name", VICTIMS)
def test_every_bit_of_the_tables_of_a_qcow2(name: str) -> None:
    data = VICTIMS[name]
    size = 1 << data[23]
    words = [2 * size, *(3 * size + at for at in range(0, 64, 8))]
    for at, value in itertools.product(words, (*(1 << bit for bit in range(64)), *EXTREMES)):
        old = int.from_bytes(data[at : at + 8], "big")
        for new in {old ^ value, value}:
            exercise(Qcow2Driver(), of_bytes(data[:at] + new.to_bytes(8, "big") + data[at + 8 :]))


@pytest.mark.parametrize("name", VICTIMS)
def test_random_damage_to_a_qcow2(name: str) -> None:
    data = VICTIMS[name]
    chance = random.Random(name)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 3, 20))):
            area = chance.choice((112, 4 * (1 << data[23]), len(data)))
            damaged[chance.randrange(area)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        exercise(Qcow2Driver(), of_bytes(bytes(damaged)))


@pytest.mark.parametrize("cluster_bits", [9, 12, 16, 21])
def test_a_tiny_qcow2_that_claims_exabytes(cluster_bits: int) -> None:
    data = bytes(Qcow2Builder(KIB, cluster_bits=cluster_bits).build())
    for size in (2 * TIB, 64 * TIB, 2**63, 2**64 - 1):
        for l1_size in (1, 2**22, 2**32 - 1):
            message = exercise(Qcow2Driver(), of_bytes(qcow2.patched(data, size=size, l1_size=l1_size)))
            assert message


def test_a_first_cluster_full_of_extensions() -> None:
    size = 2 * MIB
    head = bytes(Qcow2Builder(MIB, cluster_bits=21).build())[:112]
    extension = pack_extension(0x12345678, b"")
    data = (head + extension * (size // len(extension)))[:size] + bytes(3 * size)
    assert exercise(Qcow2Driver(), of_bytes(data)) == ""


def test_the_largest_l1_table_with_one_l2_table_for_all() -> None:
    """The whole of 2**61 bytes is mapped by 34 MiB, all to one cluster."""
    size, entries = 2 * MIB, 1 << 22
    head = bytes(Qcow2Builder(MIB, cluster_bits=21).build())[:size]
    l1, l2, cluster = 2 * size, 2 * size + 32 * MIB, 3 * size + 32 * MIB
    pieces = {
        0: qcow2.patched(head, size=2**61, l1_size=entries, l1_table_offset=l1),
        l1: struct.pack(">Q", l2 | COPIED) * entries,
        l2: struct.pack(">Q", cluster | COPIED) * (size // 8),
        cluster: b"\xaa" * size,
    }
    source = SparseSource(pieces, cluster + size, "hostile")
    assert exercise(Qcow2Driver(), source) == ""
    found = list(Qcow2Driver().check(source, OneBase()))
    assert {finding.rule for finding in found} == {"qcow2-overlap", "qcow2-cluster"}


@pytest.mark.parametrize("is_compressed", [False, True])
def test_one_cluster_that_stands_for_a_whole_table(is_compressed: bool) -> None:
    """Half a terabyte of disk is one cluster of the file."""
    size = 2 * MIB
    built = Qcow2Builder(MIB, cluster_bits=21)
    built.put(0, bytes(1))
    file = built.build()
    l2, cluster = file.l2_offsets[0], file.offsets[0]
    record = qcow2.deflated(b"\x55" * size)
    entry = COMPRESSED | 7 << 49 | cluster if is_compressed else cluster | COPIED
    pieces = {
        0: qcow2.patched(bytes(file.data[:size]), size=size * (size // 8)),
        file.l1_offset: struct.pack(">Q", l2 | COPIED),
        l2: struct.pack(">Q", entry) * (size // 8),
        cluster: record if is_compressed else b"\x55" * size,
    }
    source = SparseSource(pieces, cluster + size, "hostile")
    assert exercise(Qcow2Driver(), source) == ""
    image = Qcow2Driver().open(source, OneBase())
    with bounded():
        assert image.read_at(200 * GIB - 2, 4) == b"\x55" * 4
    image.close()


def test_bombs_give_an_error_and_little_memory() -> None:
    size = 64 * KIB
    bombs = {
        0: [zlib.compress(bytes(200 * MIB), 9)[2:-4], qcow2.deflated(bytes(size + 1))],
        ZSTD: [qcow2.zstd_frame(bytes(GIB), 1), qcow2.zstd_frame(bytes(size + 1)), b"\x28\xb5\x2f\xfd" + b"\xff" * 60],
    }
    for kind, records in bombs.items():
        for record in records:
            builder = Qcow2Builder(2 * size, compression_type=kind)
            builder.clusters[0] = qcow2.Cluster(record=record[: 2 * size - 512])
            builder.put(1, b"\x77" * size)
            source = MemorySource(bytes(builder.build()), "hostile")
            with bounded():
                image = Qcow2Driver().open(source, OneBase())
                with pytest.raises(CorruptImage, match="cluster 0, compressed at"):
                    image.read_at(0, 1)
                assert image.read_at(size, size) == b"\x77" * size


def test_empty_frames_without_end_are_one_error() -> None:
    frame = b"\x50\x2a\x4d\x18\0\0\0\0"  # a skippable frame of no bytes
    builder = Qcow2Builder(2 * MIB, cluster_bits=21, compression_type=ZSTD)
    builder.clusters[0] = qcow2.Cluster(record=frame * (3 * MIB // 8))
    with bounded():
        image = Qcow2Driver().open(MemorySource(bytes(builder.build())), OneBase())
        with pytest.raises(CorruptImage):
            image.read_at(0, 1)


def test_subcluster_bitmaps_of_random_bits_never_contradict_the_map() -> None:
    chance = random.Random(4)
    builder = Qcow2Builder(64 * 16 * KIB, cluster_bits=14, extended=True)
    for number in range(64):
        builder.put(number, qcow2.stamped(16 * KIB, number), chance.getrandbits(64) & ~(ALL if number % 3 else 0))
    source = of_bytes(bytes(builder.build()))
    assert exercise(Qcow2Driver(), source) == ""


# ---- VDI ----


def vdi_victim(**choices: object) -> bytes:
    builder = vdi.VdiBuilder(40 * KIB, block_size=4096, **choices)  # type: ignore[arg-type]
    for block in (3, 0, 1, 7):
        builder.stored[block] = vdi.stamped(4096, block)
    builder.zeroed = {2}
    return builder.build()


VDI_VICTIMS = {
    "dynamic": vdi_victim(),
    "fixed": vdi.fixed_disk(40 * KIB, block_size=4096)[0].build(),
    "differencing": vdi_victim(type=vdi.DIFFERENCING, uuid_linkage=vdi.UUID_MODIFY),
    "extra bytes": vdi_victim(extra=512),
}


@pytest.mark.parametrize("name", VDI_VICTIMS)
def test_every_header_field_of_a_vdi_at_its_extremes(name: str) -> None:
    data = VDI_VICTIMS[name]
    for field, (_, code) in vdi.HEADER_FIELDS.items():
        limit = 1 << 8 * struct.calcsize(f"<{code}")
        for value in {
            *(value for value in EXTREMES if value < limit),
            *(1 << bit for bit in range(limit.bit_length() - 1)),
        }:
            exercise(VdiDriver(), of_bytes(vdi.patched(data, **{field: value})))


def test_pairs_of_vdi_fields_that_size_tables() -> None:
    data = VDI_VICTIMS["dynamic"]
    for size, blocks, block_size in itertools.product(
        (0, 1, 2**32, 2**49, 2**63, 2**64 - 1), (0, 1, 2**16, 0x1FFFFF80, 2**32 - 1), (4096, MIB, 1 << 30)
    ):
        exercise(VdiDriver(), of_bytes(vdi.patched(data, cbDisk=size, cBlocks=blocks, cbBlock=block_size)))


@pytest.mark.parametrize("name", VDI_VICTIMS)
def test_every_bit_of_the_block_map_and_random_damage(name: str) -> None:
    data = VDI_VICTIMS[name]
    for at, value in itertools.product(range(512, 528, 4), (*(1 << bit for bit in range(32)), 2**32 - 1, 2**32 - 2)):
        old = int.from_bytes(data[at : at + 4], "little")
        for new in {old ^ value, value}:
            exercise(VdiDriver(), of_bytes(data[:at] + new.to_bytes(4, "little") + data[at + 4 :]))
    chance = random.Random(name)
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(64, chance.choice((560, len(data))))] = chance.choice((0, 1, 0x80, 0xFF))
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        exercise(VdiDriver(), of_bytes(bytes(damaged)))


@pytest.mark.parametrize("fill", [b"\0", b"\1", b"\xff"])
def test_the_largest_block_map_that_there_can_be(fill: bytes) -> None:
    """512 TiB of disk: a map of 2 GiB, of which only the first page holds `fill`, and one stored block."""
    blocks = 0x1FFFFF80
    head = vdi.VdiBuilder(MIB).build()[:512]
    data_offset = 512 + 4 * blocks + -(4 * blocks) % 512
    pieces = {
        0: vdi.patched(head, cbDisk=blocks * MIB, cBlocks=blocks, cBlocksAllocated=1, offData=data_offset),
        512: fill * (64 * KIB),
        data_offset: b"\x33" * MIB,
    }
    source = SparseSource(pieces, data_offset + MIB, "hostile")
    with bounded():
        image = VdiDriver().open(source, OneBase())
        assert source.requests <= REQUESTS
        with contextlib.suppress(CorruptImage):
            kinds = {extent.kind for extent in itertools.islice(image.extents(0, 16 * GIB), 100)}
            assert kinds == {ExtentKind.HOLE if fill == b"\xff" else ExtentKind.DATA}
        assert image.read_at(300 * TIB, 4) == b"\x33" * 4
    with bounded():
        found = list(VdiDriver().check(source, OneBase()))
    assert len(found) < 3000
    assert any(finding.severity is Severity.ERROR for finding in found)
    image.close()
