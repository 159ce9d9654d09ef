"""Images for the differential, made by qemu-img and written by qemu-io in shuffled order, by seed and number."""

import random
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
MAX_WRITES = 24
LARGEST_RAW = 24 * MIB
"""Bytes of the disks that are converted from a raw file, which is made in memory."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an image is, but for its size and content. `unit` is its grain, block or cluster in bytes.

    `converted` images are written by qemu-img convert, the others by qemu-io. `backing` is the format of a parent.
    `creator` replaces the creator application of a VHD, with a geometry as that program sets it.
    """

    format: str
    options: str = ""
    unit: int = 64 * KIB
    converted: bool = False
    compressed: bool = False
    backing: str = ""
    size: int = 0
    creator: bytes = b""

    @property
    def name(self) -> str:
        """The shape in words."""
        made = ["compressed" if self.compressed else "converted"] if self.converted else []
        more = [f"on {self.backing}"] if self.backing else []
        by = [f"by {self.creator.decode('ascii').strip(chr(0) + ' ')}"] if self.creator else []
        return " ".join([self.format, *([self.options] if self.options else []), *made, *more, *by])


@dataclass(frozen=True, slots=True)
class Specimen:
    """An image that was made: its number, its shape, where it is."""

    number: int
    shape: Shape
    path: Path
    size: int

    @property
    def name(self) -> str:
        """Number, shape and the size that was asked for."""
        return f"{self.number}: {self.shape.name}, {self.size} bytes"


def _shapes() -> tuple[Shape, ...]:
    vmdk = [
        Shape("vmdk", "subformat=monolithicSparse"),
        Shape("vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
        Shape("vmdk", "subformat=monolithicSparse,compat6=on"),
        Shape("vmdk", "subformat=monolithicSparse", converted=True),
        Shape("vmdk", "subformat=streamOptimized", converted=True),
        Shape("vmdk", "subformat=streamOptimized,hwversion=14,adapter_type=lsilogic", converted=True),
        Shape("vmdk", "subformat=monolithicFlat"),
        Shape("vmdk", "subformat=twoGbMaxExtentSparse"),
        Shape("vmdk", "subformat=twoGbMaxExtentSparse,zeroed_grain=on"),
        Shape("vmdk", "subformat=twoGbMaxExtentFlat"),
        Shape("vmdk", "subformat=monolithicSparse", backing="vmdk"),
    ]
    vhd = [
        Shape("vpc", "subformat=dynamic,force_size=on", unit=2 * MIB),
        Shape("vpc", "subformat=dynamic,force_size=off", unit=2 * MIB),
        Shape("vpc", "subformat=dynamic,force_size=on", unit=2 * MIB, converted=True),
        Shape("vpc", "subformat=fixed,force_size=on", unit=2 * MIB),
        Shape("vpc", "subformat=fixed,force_size=off", unit=2 * MIB),
        Shape("vpc", "subformat=dynamic,force_size=on", unit=2 * MIB, creator=b"vbox"),
        Shape("vpc", "subformat=dynamic,force_size=on", unit=2 * MIB, creator=b"win "),
    ]
    vhdx = [
        *(Shape("vhdx", f"block_size={size}M", unit=size * MIB) for size in (1, 2, 8, 32)),
        Shape("vhdx", "block_size=1M,block_state_zero=off", unit=MIB),
        Shape("vhdx", "block_size=1M,log_size=4M", unit=MIB, converted=True),
        Shape("vhdx", "subformat=fixed,block_size=1M", unit=MIB),
    ]
    qcow2 = [
        Shape("qcow2", "compat=0.10"),
        Shape("qcow2", "compat=1.1"),
        *(Shape("qcow2", f"cluster_size={size}", unit=size) for size in (512, 4 * KIB, 2 * MIB)),
        Shape("qcow2", "extended_l2=on,cluster_size=128k", unit=128 * KIB),
        Shape("qcow2", "extended_l2=on", converted=True),
        Shape("qcow2", "compression_type=zlib", converted=True, compressed=True),
        Shape("qcow2", "compression_type=zstd", converted=True, compressed=True),
        Shape("qcow2", "compression_type=zstd,cluster_size=4k", unit=4 * KIB, converted=True, compressed=True),
        Shape("qcow2", "preallocation=metadata"),
        Shape("qcow2", "refcount_bits=1,lazy_refcounts=on"),
        *(Shape("qcow2", backing=backing) for backing in ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")),
        Shape("qcow2", "extended_l2=on", backing="qcow2"),
    ]
    vdi = [
        Shape("vdi", unit=MIB),
        Shape("vdi", unit=MIB, converted=True),
        Shape("vdi", "static=on", unit=MIB),
    ]
    return (*vmdk, *vhd, *vhdx, *qcow2, *vdi)


SHAPES = _shapes()
LARGE = (
    # Several extents of 2 GiB each; a disk past what 32 bits count.
    Shape("vmdk", "subformat=twoGbMaxExtentSparse", size=2 * GIB + 3 * MIB + SECTOR),
    Shape("vmdk", "subformat=twoGbMaxExtentFlat", size=2 * GIB + 512 * KIB),
    Shape("vhdx", "block_size=32M", unit=32 * MIB, size=4 * GIB + MIB),
    Shape("qcow2", size=4 * GIB + SECTOR),
    Shape("vpc", "subformat=dynamic,force_size=on", unit=2 * MIB, size=3 * GIB + SECTOR),
    Shape("vdi", unit=MIB, size=2 * GIB + SECTOR),
)
"""Made once each, at the end of a run that has place for them beside every shape: they take longer."""


def shape_of(number: int, count: int) -> Shape:
    """Return the shape of an image of a run of `count`."""
    if count > len(SHAPES) + len(LARGE) and number >= count - len(LARGE):
        return LARGE[number - count + len(LARGE)]
    return SHAPES[number % len(SHAPES)]


def generate(number: int, shape: Shape, seed: str, folder: Path) -> Specimen:
    """Make an image in an empty folder. The same number, shape and seed make the same disk."""
    chance = random.Random(f"{seed} {number} {shape.name}")
    size = shape.size or _size(chance, shape.unit)
    path = folder / f"disk.{shape.format}"
    if shape.converted:
        _convert(chance, shape, size, path)
    else:
        backing: list[str] = []
        if shape.backing:
            # Sizes that differ: where a parent ends, a child may go on. A VMDK has its parent's.
            parent_size = size if shape.format == "vmdk" else max(SECTOR, size + chance.choice((-1, 0, 1)) * SECTOR)
            parent = _create(folder / f"parent.{shape.backing}", shape.backing, "", parent_size)
            _write(chance, parent, shape.backing, parent_size, shape.unit)
            backing = ["-b", parent.name, "-F", shape.backing]
        _create(path, shape.format, shape.options, size, backing)
        _write(chance, path, shape.format, size, shape.unit)
    if shape.creator:
        _relabel(path, shape.creator)
    return Specimen(number, shape, path, size)


def _size(chance: random.Random, unit: int) -> int:
    """Return a size near a boundary of something, or any size; a multiple of a sector."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice((1, 2, 3, 7, 8, 127, 128, 129)) * SECTOR
    if kind < 4:
        around = chance.randint(1, 4 if unit < 8 * MIB else 2) * unit
        return max(SECTOR, around + chance.choice((-1, 0, 1)) * chance.choice((1, 1, 1, 7, 100)) * SECTOR)
    return chance.randint(1, 48 * MIB // SECTOR) * SECTOR


def _create(path: Path, image_format: str, options: str, size: int, backing: Sequence[str] = ()) -> Path:
    more = ["-o", options] if options else []
    _run("qemu-img", "create", "-q", "-f", image_format, *more, *backing, path.name, str(size), folder=path.parent)
    return path


def _write(chance: random.Random, path: Path, image_format: str, size: int, unit: int) -> None:
    """Write, zero and discard runs in shuffled order: at units' boundaries, across them, inside them."""
    # qemu-img rounds some sizes up; only what was asked for is written.
    units = range(-(-size // unit))
    chosen = chance.sample(units, min(len(units), chance.randint(1, MAX_WRITES)))
    chance.shuffle(chosen)
    commands = []
    for place in chosen:
        start = place * unit + chance.choice((0, 0, 1, 3)) * SECTOR
        wanted = chance.choice((SECTOR, unit - SECTOR, unit, unit + SECTOR, 3 * unit, 17 * SECTOR))
        length = min(wanted, size - start, 3 * MIB)
        if length <= 0:
            continue
        kind = chance.randrange(8)
        if kind == 0:
            commands.append(f"write -q -z {start} {length}")
        elif kind == 1:
            commands.append(f"discard -q {start} {length}")
        else:
            commands.append(f"write -q -P {chance.randint(1, 255)} {start} {length}")
    if not commands:
        return
    arguments = [word for command in commands for word in ("-c", command)]
    said = _run("qemu-io", "-f", image_format, "-d", "unmap", *arguments, path.name, folder=path.parent)
    # It goes on after a command that fails, and its exit code may be 0.
    if said:
        raise SystemExit(f"differential: qemu-io: {path.name}: {said}")


def _convert(chance: random.Random, shape: Shape, size: int, path: Path) -> None:
    size = min(size, LARGEST_RAW)
    raw = path.parent / "source.raw"
    with raw.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, 64 * KIB):
            length = min(64 * KIB, size - start)
            kind = chance.randrange(4)
            if kind == 0:
                file.seek(start)
                file.write(chance.randbytes(length))
            elif kind == 1:
                file.seek(start)
                file.write((chance.randbytes(7) * (length // 7 + 1))[: length - length // 3])
        file.truncate(size)
    options = ["-o", shape.options] if shape.options else []
    packed = ["-c"] if shape.compressed else []
    _run("qemu-img", "convert", "-f", "raw", "-O", shape.format, *options, *packed, raw.name, path.name,
         folder=path.parent)  # fmt: skip
    raw.unlink()


def _relabel(path: Path, creator: bytes) -> None:
    """Put another creator application into both footers of a dynamic VHD, and the geometry that the specification's
    appendix computes for a small disk, whose product is mostly less than the size.
    """
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack_from(">Q", data, 48)
    sectors = size // SECTOR
    cylinders, heads, per_track = _geometry(sectors)
    for offset in (0, len(data) - SECTOR):
        footer = data[offset : offset + SECTOR]
        footer[28:32] = creator
        struct.pack_into(">HBB", footer, 56, cylinders, heads, per_track)
        footer[64:68] = bytes(4)
        struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
        data[offset : offset + SECTOR] = footer
    path.write_bytes(data)


def _geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track, as the appendix of the VHD specification computes them for a disk
    of less than 65535 * 16 * 63 sectors.
    """
    per_track = 17
    by_heads = sectors // per_track
    heads = max(4, (by_heads + 1023) // 1024)
    if by_heads >= heads * 1024 or heads > 16:
        per_track, heads = 31, 16
        by_heads = sectors // per_track
    if by_heads >= heads * 1024:
        per_track, heads = 63, 16
        by_heads = sectors // per_track
    return by_heads // heads, heads, per_track


def _run(*command: str, folder: Path) -> str:
    """Run a tool in a folder and return what it printed."""
    result = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    if result.returncode:
        raise SystemExit(f"differential: {' '.join(command)}: {result.stdout.strip()}")
    return result.stdout.strip()
