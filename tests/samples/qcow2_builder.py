"""Packs qcow2 files by hand, from the specification, with nothing of the code under test.

Specification: QEMU, docs/interop/qcow2.txt. Big-endian. `Qcow2Builder` describes a disk cluster by cluster; `build()`
lays the file out as header, refcount table, L1 table, and then L2 tables and data in a chosen order. `Built` says where
everything is, so that a test can damage it.
"""

import random
import struct
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SECTOR = 512
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
ALL = 0xFFFFFFFF
DEFLATE, ZSTD = 0, 1

DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION_BIT, EXTENDED_L2 = 1, 2, 4, 8, 16

HEADER_FIELDS = {
    # name: (offset, struct code)
    "magic": (0, "I"),
    "version": (4, "I"),
    "backing_file_offset": (8, "Q"),
    "backing_file_size": (16, "I"),
    "cluster_bits": (20, "I"),
    "size": (24, "Q"),
    "crypt_method": (32, "I"),
    "l1_size": (36, "I"),
    "l1_table_offset": (40, "Q"),
    "refcount_table_offset": (48, "Q"),
    "refcount_table_clusters": (56, "I"),
    "nb_snapshots": (60, "I"),
    "snapshots_offset": (64, "Q"),
    "incompatible_features": (72, "Q"),
    "compatible_features": (80, "Q"),
    "autoclear_features": (88, "Q"),
    "refcount_order": (96, "I"),
    "header_length": (100, "I"),
    "compression_type": (104, "B"),
}


def patched(data: bytes, **fields: int) -> bytes:
    """Return an image with fields of its header changed."""
    changed = bytearray(data)
    for name, value in fields.items():
        offset, code = HEADER_FIELDS[name]
        struct.pack_into(f">{code}", changed, offset, value)
    return bytes(changed)


def stamped(size: int, seed: int = 0) -> bytes:
    """Bytes in which no two sectors are the same and no sector is zero, half random and half easy to compress."""
    chance = random.Random(seed)
    sectors = [
        struct.pack(">II", seed, number) + chance.randbytes(248) + bytes([number % 255 + 1]) * 256
        for number in range(-(-size // SECTOR))
    ]
    return b"".join(sectors)[:size]


def deflated(data: bytes, level: int = 6) -> bytes:
    """A raw deflate stream with qemu's window of 4 KiB."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


def zstd_frame(data: bytes, level: int = 3, *, checksum: bool = False, content_size: bool = True) -> bytes:
    """A zstd frame, with or without its optional fields."""
    parameter = zstd.CompressionParameter
    options = {
        parameter.compression_level: level,
        parameter.checksum_flag: int(checksum),
        parameter.content_size_flag: int(content_size),
    }
    return zstd.compress(data, options={int(name): value for name, value in options.items()})


def pack_extension(kind: int, data: bytes, length: int | None = None) -> bytes:
    """A header extension, padded to 8 bytes."""
    stated = len(data) if length is None else length
    return struct.pack(">II", kind, stated) + data + bytes(-len(data) % 8)


def feature_name(kind: int, bit: int, name: bytes) -> bytes:
    """An entry of the feature name table."""
    return struct.pack(">BB46s", kind, bit, name)


@dataclass
class Cluster:
    """What is to become of one cluster. `entry` overrides all else."""

    data: bytes | None = None
    record: bytes | None = None
    """The compressed record to store."""
    zero: bool = False
    bitmap: int | None = None
    """The second word of an extended entry; None for what goes with the rest."""
    sectors: int | None = None
    """Additional sectors that a compressed entry states; None for as many as are needed."""
    entry: int | None = None


@dataclass
class Built:
    """A packed file, and where its structures are."""

    data: bytearray
    l1_offset: int
    l2_offsets: dict[int, int]
    """L1 index -> offset of the L2 table."""
    offsets: dict[int, int]
    """Cluster -> where it, or its record, is stored."""
    entry_offsets: dict[int, int]
    """Cluster -> where its L2 entry is."""

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def set_word(self, offset: int, value: int) -> None:
        """Change the 64-bit number at `offset`."""
        struct.pack_into(">Q", self.data, offset, value)

    def word(self, offset: int) -> int:
        """Return the 64-bit number at `offset`."""
        (value,) = struct.unpack_from(">Q", self.data, offset)
        return int(value)


@dataclass
class Qcow2Builder:
    """A qcow2 image to be: `clusters` says what each has; those that are missing are unallocated."""

    size: int
    cluster_bits: int = 16
    version: int = 3
    extended: bool = False
    compression_type: int = DEFLATE
    incompatible: int = 0
    """Feature bits besides those that follow from the other choices."""
    backing_file: bytes = b""
    backing_format: bytes | None = None
    extensions: bytes = b""
    """Packed extensions before the backing format's."""
    header_length: int = 112
    nb_snapshots: int = 0
    shuffle: int | None = None
    """Seed of the order in which tables and data are stored; None for ascending."""
    gap: int = 0
    """Unused bytes before each compressed record."""
    clusters: dict[int, Cluster] = field(default_factory=dict)

    @property
    def cluster_size(self) -> int:
        """Bytes."""
        return 1 << self.cluster_bits

    @property
    def entry_size(self) -> int:
        """Bytes of an L2 entry."""
        return 16 if self.extended else 8

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table."""
        return self.cluster_size // self.entry_size

    def put(self, cluster: int, data: bytes, bitmap: int | None = None) -> None:
        """Store a cluster as it is."""
        self.clusters[cluster] = Cluster(data=data.ljust(self.cluster_size, b"\0"), bitmap=bitmap)

    def put_compressed(self, cluster: int, data: bytes, *, level: int = 6) -> None:
        """Store a cluster compressed."""
        whole = data.ljust(self.cluster_size, b"\0")
        record = zstd_frame(whole) if self.compression_type == ZSTD else deflated(whole, level)
        self.clusters[cluster] = Cluster(record=record)

    def put_zero(self, cluster: int, *, data: bytes | None = None) -> None:
        """Make a cluster read as zero, over `data` that stays allocated if given."""
        self.clusters[cluster] = Cluster(zero=True, data=data)

    def build(self) -> Built:
        """Pack the file."""
        size = self.cluster_size
        span = self.l2_entries * size
        l1_size = -(-self.size // span)
        l1_clusters = -(-l1_size * 8 // size)
        l1_offset = 2 * size
        tables = sorted({cluster // self.l2_entries for cluster in self.clusters})
        plain = sorted(number for number, cluster in self.clusters.items() if cluster.data is not None)
        places: list[tuple[str, int]] = [*(("table", number) for number in tables), *(("data", n) for n in plain)]
        records = sorted(number for number, cluster in self.clusters.items() if cluster.record is not None)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(places)
            random.Random(self.shuffle).shuffle(records)
        at = l1_offset + l1_clusters * size
        l2_offsets: dict[int, int] = {}
        offsets: dict[int, int] = {}
        for kind, number in places:
            (l2_offsets if kind == "table" else offsets)[number] = at
            at += size
        for number in records:
            at += self.gap
            offsets[number] = at
            record = self.clusters[number].record
            assert record is not None
            at += len(record)
        data = bytearray(-(-at // size) * size)
        data[:size] = self._first_cluster(l1_size, l1_offset)
        built = Built(data, l1_offset, l2_offsets, offsets, {})
        for number, offset in l2_offsets.items():
            built.set_word(l1_offset + number * 8, offset | COPIED)
        for number, cluster in self.clusters.items():
            stored = cluster.data if cluster.data is not None else cluster.record
            if stored is not None:
                data[offsets[number] : offsets[number] + len(stored)] = stored
            entry_at = l2_offsets[number // self.l2_entries] + number % self.l2_entries * self.entry_size
            built.entry_offsets[number] = entry_at
            entry, bitmap = self._entry(cluster, offsets.get(number, 0))
            built.set_word(entry_at, entry)
            if self.extended:
                built.set_word(entry_at + 8, bitmap)
        return built

    def _entry(self, cluster: Cluster, offset: int) -> tuple[int, int]:
        bitmap = 0
        if cluster.record is not None:
            shift = 62 - (self.cluster_bits - 8)
            end = offset + len(cluster.record)
            sectors = -(-end // SECTOR) - offset // SECTOR - 1 if cluster.sectors is None else cluster.sectors
            entry = COMPRESSED | sectors << shift | offset
        elif cluster.zero:
            entry = (offset | COPIED if offset else 0) | (0 if self.extended else ZERO)
            bitmap = ALL << 32
        else:
            entry, bitmap = offset | COPIED, ALL
        if cluster.bitmap is not None:
            bitmap = cluster.bitmap
        return (entry if cluster.entry is None else cluster.entry), bitmap

    def _first_cluster(self, l1_size: int, l1_offset: int) -> bytes:
        incompatible = self.incompatible | EXTENDED_L2 * self.extended | COMPRESSION_BIT * bool(self.compression_type)
        extensions = self.extensions
        if self.backing_format is not None:
            extensions += pack_extension(0xE2792ACA, self.backing_format)
        extensions += pack_extension(0, b"")
        length = self.header_length if self.version >= 3 else 72
        backing_offset = length + len(extensions) if self.backing_file else 0
        head = struct.pack(
            ">4sIQIIQIIQQIIQ",
            b"QFI\xfb",
            self.version,
            backing_offset,
            len(self.backing_file),
            self.cluster_bits,
            self.size,
            0,
            l1_size,
            l1_offset,
            self.cluster_size,
            1,
            self.nb_snapshots,
            self.cluster_size if self.nb_snapshots else 0,
        )
        assert len(head) == 72
        if self.version >= 3:
            head += struct.pack(">QQQII", incompatible, 0, 0, 4, length)
            assert len(head) == 104
            head += bytes([self.compression_type]).ljust(length - 104, b"\0")[: length - 104]
        return (head + extensions + self.backing_file).ljust(self.cluster_size, b"\0")


def mixed_disk(size: int, *, seed: int = 0, **choices: object) -> tuple[Qcow2Builder, bytes]:
    """A disk whose clusters are stored, compressed, zero, or not there, in a random mixture; and its bytes."""
    builder = Qcow2Builder(size, **choices)  # type: ignore[arg-type]  # a plain table of keywords
    chance = random.Random(seed)
    content = bytearray(size)
    source = stamped(size, seed)
    clusters = -(-size // builder.cluster_size)
    number = 0
    while number < clusters:
        kind = chance.choice(("data", "data", "compressed", "zero", "hole", "allocated zero", "mixed"))
        for _ in range(min(chance.choice((1, 1, 2, 5)), clusters - number)):
            start = number * builder.cluster_size
            data = source[start : start + builder.cluster_size]
            if kind == "data" or (kind == "mixed" and not builder.extended):
                builder.put(number, data)
            elif kind == "compressed":
                builder.put_compressed(number, data, level=chance.choice((0, 1, 9)))
            elif kind == "zero" and builder.version >= 3:
                builder.put_zero(number)
            elif kind == "allocated zero" and builder.version >= 3:
                builder.put_zero(number, data=b"\xee" * builder.cluster_size)
            elif kind == "mixed":
                allocated = chance.getrandbits(32)
                zero = chance.getrandbits(32) & ~allocated
                builder.put(number, data, allocated | zero << 32)
                step = builder.cluster_size // 32
                data = b"".join(
                    data[unit * step : (unit + 1) * step]
                    if allocated >> unit & 1
                    else bytes(len(data[unit * step : (unit + 1) * step]))
                    for unit in range(32)
                )
            if number in builder.clusters and not builder.clusters[number].zero:
                content[start : start + len(data)] = data
            number += 1
    return builder, bytes(content)


MIXTURES: dict[str, tuple[int, dict[str, object]]] = {
    # name: (size, choices); the last cluster is never whole, and there are two L2 tables where that stays small
    "version 2, 512 byte clusters": (140 * 512 + 100 * 512, {"version": 2, "cluster_bits": 9, "shuffle": 1}),
    "version 3, 512 byte clusters": (150 * 512, {"cluster_bits": 9, "shuffle": 2}),
    "version 3, 4 KiB clusters": (600 * 4096 + 1536, {"cluster_bits": 12, "shuffle": 3}),
    "version 3, 4 KiB clusters, zstd": (
        90 * 4096 + 512,
        {"cluster_bits": 12, "compression_type": ZSTD, "shuffle": 4, "gap": 7},
    ),
    "version 2, 64 KiB clusters": (40 * 65536 + 512, {"version": 2, "shuffle": 5}),
    "version 3, 64 KiB clusters, in order": (40 * 65536 + 512, {"header_length": 104}),
    "extended L2, 16 KiB clusters": (60 * 16384 + 7168, {"cluster_bits": 14, "extended": True, "shuffle": 6}),
    "extended L2, 64 KiB clusters, zstd": (
        24 * 65536 + 3584,
        {"extended": True, "compression_type": ZSTD, "shuffle": 7},
    ),
}


def make_mixture(name: str, folder: Path) -> tuple[bytes, bytes]:
    """Return an image of MIXTURES and the bytes of its disk."""
    size, choices = MIXTURES[name]
    builder, content = mixed_disk(size, seed=len(name), **choices)
    return bytes(builder.build()), content
