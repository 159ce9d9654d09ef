"""What diskfs, qemu and libyal's tools say of one image, and where they differ."""

import hashlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskfs.cli.map import joined, map_entries
from diskfs.disks.opening import open_source
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import DiskfsError
from scripts.differentiallib.generating import MIB, Specimen

PIECE = 4 * MIB
MOUNTED = 64 * MIB
"""Bytes up to which a disk's content is also read through libyal's mount, which is slow."""
MAP_KEYS = {
    # What qemu's driver of the format knows. That of VHDX knows nothing and calls everything data.
    "vmdk": ("depth", "present", "zero", "data"),
    "qcow2": ("depth", "present", "zero", "data"),
    "vpc": ("data",),
    "vdi": ("data",),
}
TOOLS = {"vmdk": ("vmdkinfo", "vmdkmount"), "vpc": ("vhdiinfo", "vhdimount"), "vhdx": ("vhdiinfo", "vhdimount")}
Run = tuple[int, int, list[Any]]
"""Start, end, and the values of the keys that are compared."""
MEDIA_SIZE = re.compile(r"Media size\s*:.*?(\d+)(?: bytes|\s*$|\))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One thing in which another reader says something else: `what` is compared, in both words."""

    specimen: Specimen
    reader: str
    what: str
    diskfs: str
    other: str

    def __str__(self) -> str:
        return f"{self.specimen.name}: {self.what}: diskfs {self.diskfs}, {self.reader} {self.other}"


def compare(specimen: Specimen, *, mount: bool) -> Iterator[Disagreement]:
    """Yield every disagreement over an image; with `mount`, content is read through libyal's mounts too."""

    def differs(reader: str, what: str, ours: object, other: object) -> Iterator[Disagreement]:
        if ours != other:
            yield Disagreement(specimen, reader, what, str(ours), str(other))

    size, sha256, qemu_map = _qemu(specimen)
    try:
        with open_source(str(specimen.path)) as opened:
            disk = opened.disk(0).image
            ours = [dict(entry) for entry in joined(map_entries(disk.extents()))]
            yield from differs("qemu-img", "virtual size", disk.size, size)
            # Where the sizes differ, the part that both have is compared none the less.
            if size <= disk.size:
                yield from differs("qemu-img", "content", _sha256_of(disk, size), sha256)
            if keys := MAP_KEYS.get(specimen.shape.format):
                found = _map_difference(_runs(ours, keys, size), _runs(qemu_map, keys, disk.size), keys)
                if found is not None:
                    yield Disagreement(specimen, "qemu-img", *found)
            if tools := TOOLS.get(specimen.shape.format):
                yield from _libyal(specimen, disk, *tools, mount=mount)
    except DiskfsError as error:
        yield Disagreement(specimen, "qemu-img", "opening", str(error), f"{size} bytes")


def _libyal(specimen: Specimen, disk: DiskImage, info: str, mounting: str, *, mount: bool) -> Iterator[Disagreement]:
    """Yield what libyal's tools disagree about. They are not given parents, so of a child only the size is compared."""
    size = _media_size(info, specimen.path)
    if size != str(disk.size):
        yield Disagreement(specimen, info, "virtual size", str(disk.size), size)
    if mount and disk.size <= MOUNTED and not specimen.shape.backing:
        ours, theirs = _sha256_of(disk, disk.size), _mounted_sha256(mounting, specimen.path)
        if ours != theirs:
            yield Disagreement(specimen, mounting, "content", ours, theirs)


def _sha256_of(disk: DiskImage, length: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, length, PIECE):
        digest.update(disk.read_at(offset, min(PIECE, length - offset)))
    return digest.hexdigest()


def _qemu(specimen: Specimen) -> tuple[int, str, list[dict[str, Any]]]:
    """Return virtual size, digest and map as qemu has them."""
    named = ("-f", specimen.shape.format)
    path = str(specimen.path)
    size = json.loads(_output("qemu-img", "info", *named, "--output=json", path))["virtual-size"]
    entries = json.loads(_output("qemu-img", "map", *named, "--output=json", path))
    copy = specimen.path.with_name("qemu.raw")
    try:
        _output("qemu-img", "convert", *named, "-O", "raw", path, str(copy))
        with copy.open("rb") as file:
            return size, hashlib.file_digest(file, "sha256").hexdigest(), entries
    finally:
        copy.unlink(missing_ok=True)


def _runs(entries: Iterable[dict[str, Any]], keys: tuple[str, ...], end: int) -> list[Run]:
    """Return where the values of `keys` change, up to `end`: start, end, values."""
    runs: list[Run] = []
    for entry in entries:
        start, stop, values = entry["start"], min(entry["start"] + entry["length"], end), [entry[key] for key in keys]
        if start >= end:
            break
        if runs and runs[-1][2] == values:
            runs[-1] = (runs[-1][0], stop, values)
        else:
            runs.append((start, stop, values))
    return runs


def _map_difference(ours: list[Run], theirs: list[Run], keys: tuple[str, ...]) -> tuple[str, str, str] | None:
    """Return what differs between two maps, and the first run that does, in both; None if nothing does.

    The first word says how far: `map: KEY` if they are equal but for one key, `map of the parent` if they are equal in
    what the file itself decides.
    """
    if ours == theirs:
        return None
    place = next(((one, two) for one, two in zip(ours, theirs, strict=False) if one != two), (ours[-1], theirs[-1]))
    shown = [f"{start:#x}-{end:#x} {dict(zip(keys, map(int, values), strict=True))}" for start, end, values in place]
    for key in keys:
        if _without(ours, keys, key) == _without(theirs, keys, key):
            return f"map: {key}", shown[0], shown[1]
    own = [[run for run in runs if "depth" in keys and run[2][keys.index("depth")] == 0] for runs in (ours, theirs)]
    return ("map of the parent" if own[0] and own[0] == own[1] else "map"), shown[0], shown[1]


def _without(runs: list[Run], keys: tuple[str, ...], key: str) -> list[Run]:
    left = tuple(each for each in keys if each != key)
    entries = (
        {"start": start, "length": end - start, **dict(zip(keys, values, strict=True))} for start, end, values in runs
    )
    return _runs(entries, left, runs[-1][1])


def _media_size(info: str, path: Path) -> str:
    """Return the virtual size that a tool prints, in bytes; its message if it does not."""
    result = subprocess.run([info, path.name], cwd=path.parent, capture_output=True, text=True, check=False)
    if result.returncode or not (found := MEDIA_SIZE.search(result.stdout)):
        return " ".join((result.stderr or result.stdout).split()) or f"exit code {result.returncode}"
    return found[1]


def _mounted_sha256(tool: str, path: Path) -> str:
    """Return the digest of the disk that libyal's mount shows; its message if it shows none."""
    with tempfile.TemporaryDirectory(prefix="differential-") as folder:
        command = [tool, path.name, folder]
        result = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
        if result.returncode:
            return " ".join((result.stderr or result.stdout).split()) or f"exit code {result.returncode}"
        try:
            with (Path(folder) / f"{tool.removesuffix('mount')}1").open("rb", buffering=0) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"read error: {error.strerror}"
        finally:
            _unmount(folder)


def _unmount(folder: str) -> None:
    # It is still busy for a moment after it was read.
    for _ in range(20):
        if subprocess.run(["fusermount3", "-u", folder], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["fusermount3", "-u", "-z", folder], check=True)


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"differential: {' '.join(command)}: {result.stderr.strip()}")
    return result.stdout
