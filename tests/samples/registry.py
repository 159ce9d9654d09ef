"""Samples of every driver, for the conformance suite. A new driver adds its row; until then one test fails.

A sample is made when it is needed: by a builder that packs the bytes from the specification, or by another program.
"""

import functools
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.samples import qcow2_builder, vdi_builder, vhd_builder, vhdx_builder
from tests.samples.vmdk_builder import NO_DESCRIPTOR, Layout, build, stamped, with_zero_grains

MIB = 1 << 20
Maker = Callable[[Path], tuple[Path | bytes, bytes]]
"""Given an empty folder, returns the image, as a file there or as bytes, and the bytes of its disk."""


@dataclass(frozen=True)
class Sample:
    """One image and the bytes of its disk."""

    name: str
    make: Maker


def _built(layout: Layout, sectors: int) -> Maker:
    def make(_folder: Path) -> tuple[bytes, bytes]:
        grains = -(-sectors // layout.grain)
        holes = sorted({*random.Random(sectors).sample(range(grains), grains // 3)} - layout.stored | layout.zeroed)
        content = with_zero_grains(stamped(sectors), layout.grain, holes)
        return bytes(build(content, layout)), content

    return make


def _qemu_written(options: str, *, zeroes: bool = False) -> Maker:
    """Units written by qemu-io in shuffled order, so that none lies where a sequential writer would put it."""

    def make(folder: Path) -> tuple[Path, bytes]:
        size = (40 * 128 + 77) * 512
        content = bytearray(size)
        path = folder / "disk.vmdk"
        subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", options, str(path), str(size)], check=True)
        grains = [*range(0, 20, 3), *range(21, 30), 39]
        random.Random(5).shuffle(grains)
        commands = []
        for number, grain in enumerate(grains):
            offset, length, pattern = grain * 65536 + number % 3 * 512, 512 * (1 + number * 7 % 126), number + 1
            commands += ["-c", f"write -q -P {pattern} {offset} {length}"]
            content[offset : offset + length] = bytes([pattern]) * length
        if zeroes:
            for grain in (3, 22, 23):
                commands += ["-c", f"write -q -z {grain * 65536} 65536"]
                content[grain * 65536 : (grain + 1) * 65536] = bytes(65536)
        subprocess.run(["qemu-io", "-f", "vmdk", *commands, str(path)], check=True, capture_output=True)
        return path, bytes(content)

    return make


def _qemu_converted(options: str) -> Maker:
    def make(folder: Path) -> tuple[Path, bytes]:
        content = with_zero_grains(stamped(40 * 128 + 77), 128, (0, 5, 6, 7, 30))
        (folder / "disk.raw").write_bytes(content)
        command = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", options, "disk.raw", "disk.vmdk"]
        subprocess.run(command, check=True, cwd=folder)
        return folder / "disk.vmdk", content

    return make


def _vhd(size: int, block_size: int) -> Maker:
    def make(_folder: Path) -> tuple[bytes, bytes]:
        builder, content = vhd_builder.filled(size, block_size)
        return builder.build(), content

    return make


def _vhd_fixed(size: int, footer_size: int) -> Maker:
    def make(_folder: Path) -> tuple[bytes, bytes]:
        content = stamped(size // 512)
        return vhd_builder.fixed(content, footer_size=footer_size), content

    return make


def _vhdx(folder: Path) -> tuple[Path, bytes]:
    builder = vhdx_builder.VhdxBuilder(virtual_size=4 * MIB + 512 * 77, block_size=MIB)
    content = bytearray(5 * MIB)
    for block in (3, 0, 4):
        data = vhdx_builder.pattern(block + 1)
        builder.put(block, data)
        content[block * MIB : (block + 1) * MIB] = data
    builder.set_state(1, vhdx_builder.ZERO)
    path = folder / "disk.vhdx"
    path.write_bytes(builder.build())
    return path, bytes(content[: builder.virtual_size])


def _qemu_made(image_format: str, options: str, size: int, unit: int) -> Maker:
    """Units written by qemu-io in shuffled order, so that none lies where a sequential writer would put it."""

    def make(folder: Path) -> tuple[Path, bytes]:
        content = bytearray(size)
        path = folder / "disk.image"
        create = ["qemu-img", "create", "-q", "-f", image_format, *(["-o", options] if options else [])]
        subprocess.run([*create, str(path), str(size)], check=True)
        units = [*range(0, size // unit, 2)]
        random.Random(6).shuffle(units)
        commands = []
        for number, place in enumerate(units):
            offset, length, value = place * unit + 512 * number, min(unit, 3 * 65536) - 512 * number, number + 1
            commands += ["-c", f"write -q -P {value} {offset} {length}"]
            content[offset : offset + length] = bytes([value]) * length
        subprocess.run(["qemu-io", "-f", image_format, *commands, str(path)], check=True, capture_output=True)
        return path, bytes(content)

    return make


def _raw(size: int) -> Maker:
    def make(_folder: Path) -> tuple[bytes, bytes]:
        content = random.Random(size).randbytes(size)
        return content, content

    return make


def _raw_with_holes(folder: Path) -> tuple[Path, bytes]:
    content = bytearray(3 << 20)
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(len(content))
        for offset, length in ((0, 5000), (1 << 20, 70_000), ((3 << 20) - 4096, 4096)):
            data = random.Random(offset).randbytes(length)
            file.seek(offset)
            file.write(data)
            content[offset : offset + length] = data
    return path, bytes(content)


SAMPLES: dict[str, tuple[Sample, ...]] = {
    "vmdk": (
        Sample("plain", _built(Layout(grain=8, entries=16, redundant=True, shuffle=1), 8 * 70)),
        Sample("plain, odd capacity", _built(Layout(grain=8, entries=16, shuffle=2, short_last=True), 8 * 70 + 3)),
        Sample("plain, one sector grains", _built(Layout(grain=1, entries=128, descriptor=NO_DESCRIPTOR), 700)),
        Sample("plain, footer", _built(Layout(grain=8, entries=16, footer=True, shuffle=3), 8 * 70 + 1)),
        Sample(
            "zeroed grains",
            _built(Layout(grain=8, entries=16, version=2, zeroed=frozenset({0, 7, 8, 40, 69}), shuffle=4), 8 * 70),
        ),
        Sample("stream", _built(Layout(grain=16, entries=16, version=3, compressed=True, footer=True), 16 * 50)),
        Sample(
            "stream, odd capacity, shuffled",
            _built(
                Layout(grain=16, entries=16, compressed=True, footer=True, short_last=True, shuffle=5, gap=1),
                16 * 50 + 9,
            ),
        ),
        Sample(
            "stream, header, stored blocks",
            _built(Layout(grain=16, entries=16, version=3, compressed=True, level=0, stored=frozenset({3})), 16 * 50),
        ),
        Sample("qemu monolithicSparse", _qemu_written("subformat=monolithicSparse")),
        Sample("qemu zeroed_grain", _qemu_written("subformat=monolithicSparse,zeroed_grain=on", zeroes=True)),
        Sample("qemu streamOptimized", _qemu_converted("subformat=streamOptimized")),
    ),
    "vhd": (
        Sample("fixed", _vhd_fixed(300 * 512, 512)),
        Sample("fixed, 511-byte footer", _vhd_fixed(300 * 512, 511)),
        Sample("dynamic, shuffled", _vhd(45 * 4096, 4096)),
        Sample("dynamic, last block cut", _vhd(20 * 4096 + 1536, 4096)),
        Sample("qemu dynamic", _qemu_made("vpc", "force_size=on", 16 * MIB, 2 * MIB)),
    ),
    "vhdx": (
        Sample("dynamic, shuffled", _vhdx),
        Sample("qemu dynamic", _qemu_made("vhdx", "block_size=1M", 8 * MIB, MIB)),
        Sample("qemu fixed", _qemu_made("vhdx", "subformat=fixed,block_size=1M", 8 * MIB, MIB)),
    ),
    "qcow2": tuple(
        Sample(name, functools.partial(qcow2_builder.make_mixture, name)) for name in qcow2_builder.MIXTURES
    ),
    "vdi": (
        *(Sample(name, functools.partial(vdi_builder.make_shuffled, name)) for name in vdi_builder.SHUFFLED),
        Sample("fixed", vdi_builder.make_fixed),
    ),
    "raw": (
        Sample("sectors", _raw(100 * 512)),
        Sample("one byte", _raw(1)),
        Sample("part of a sector", _raw(70_001)),
        Sample("holes", _raw_with_holes),
    ),
}
"""Driver name -> its samples; every driver of the registry has at least one."""
