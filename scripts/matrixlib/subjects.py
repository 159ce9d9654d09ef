"""What the matrix converts: every disk of the corpus, of tests/samples, and disks whose size or content is odd.

Each comes with its raw content from outside the writers: what its maker recorded of it, wrote, or hashed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from diskfs.disks.opening import OpenedDisk, open_source
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import DiskfsError
from diskfs_formats.extents import ExtentKind
from diskfs_formats.reading import zeroes
from scripts.corpuslib.expectations import Digest, Expected, expectations
from scripts.matrixlib.odd import ODD
from scripts.matrixlib.subject import SECTOR, Left, Subject
from tests.helpers import corpus_rows
from tests.samples.registry import SAMPLES

PIECE = 4 << 20


def corpus_names() -> list[str]:
    """The images of the corpus, by their paths."""
    return [f"corpus: {each.row.path}" for each in expectations(corpus_rows())]


def sample_names() -> list[str]:
    """The samples of every driver."""
    return [f"sample: {driver}, {sample.name}" for driver, samples in SAMPLES.items() for sample in samples]


def odd_names() -> list[str]:
    """The disks that are made here."""
    return [f"odd: {name}" for name in ODD]


def subjects(name: str, corpus: Path | None, folder: Path, largest: int) -> Iterator[Subject | Left]:
    """Make the disks of one name, with what they need in an empty folder; they stay there.

    Disks of the corpus that have more than `largest` bytes are left.
    """
    kind, _, rest = name.partition(": ")
    if kind == "corpus":
        assert corpus is not None
        expected = next(each for each in expectations(corpus_rows()) if each.row.path == rest)
        yield from _of_corpus(name, expected, corpus, folder, largest)
    elif kind == "sample":
        yield _of_sample(name, folder)
    else:
        yield ODD[rest](name, folder)


def _of_corpus(name: str, expected: Expected, corpus: Path, folder: Path, largest: int) -> Iterator[Subject | Left]:
    # A guest's file system may look like another format: the manifest says that the file is a disk as it is.
    is_raw = expected.row.format.startswith("raw") and expected.row.sha256_content
    format_name = "raw" if is_raw else None
    location = corpus / expected.row.path
    try:
        with open_source(str(location), format_name=format_name) as opened:
            if not opened.disks:
                yield Left(name, "an appliance without disk files")
            for disk in opened.disks:
                shown = name if opened.container is None else f"{name}: {disk.file_name}"
                keys = (str(disk.index), disk.file_name.removesuffix(".gz"))
                digest = next((expected.digests[key] for key in keys if key in expected.digests), None)
                options = ("--disk", str(disk.index), *(("--format", format_name) if format_name else ()))
                if disk.error is None and disk.image.size > largest:
                    yield Left(shown, f"larger than --largest: {disk.image.size} bytes")
                    continue
                found = Subject(shown, location, options, 0)
                yield _of_disk(found, disk, expected, digest, folder / f"content{disk.index}")
    except DiskfsError as error:
        refused = expected.refusal is not None and expected.refusal.when == "open"
        yield Left(name, f"not readable, as {'recorded' if refused else 'is NOT recorded'}: {error}", good=refused)


def _of_disk(found: Subject, disk: OpenedDisk, expected: Expected, digest: Digest | None, raw: Path) -> Subject | Left:
    if disk.error is not None:
        return Left(found.name, f"not readable: {disk.error}", good=expected.refusal is not None)
    image = disk.image
    found = replace(found, size=image.size, sector_size=image.info.sector_size)
    try:
        sha256 = write_content(image, raw)
    except DiskfsError as error:
        if expected.refusal is None or expected.refusal.when != "read" or expected.refusal.words not in str(error):
            return Left(found.name, f"reading it fails: {error}", good=False)
        return replace(found, failure=str(error), basis="recorded as damaged")
    if digest is None:
        return replace(found, raw=raw, basis="nothing recorded of its content")
    # qemu-img, whose digests these are, fills up the last sector of a raw file.
    if digest.sha256 not in (sha256, _padded_sha256(raw)):
        return Left(found.name, f"its content is not what is recorded ({digest.sha256})", good=False)
    return replace(found, raw=raw, basis=f"SHA-256 by {digest.by}")


def write_content(image: DiskImage, raw: Path) -> str:
    """Write a disk as a sparse raw file by its map, without the writers; return the SHA-256."""
    digest = hashlib.sha256()
    with raw.open("wb") as file:
        for extent in image.extents():
            if extent.kind is not ExtentKind.DATA:
                for piece in zeroes(extent.length):
                    digest.update(piece)
                continue
            for offset in range(extent.offset, extent.end, PIECE):
                data = image.read_at(offset, min(PIECE, extent.end - offset))
                digest.update(data)
                if data.strip(b"\0"):
                    file.seek(offset)
                    file.write(data)
        file.truncate(image.size)
    return digest.hexdigest()


def _padded_sha256(raw: Path) -> str:
    with raw.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(bytes(-raw.stat().st_size % SECTOR))
    return digest.hexdigest()


def _of_sample(name: str, folder: Path) -> Subject:
    driver, _, sample_name = name.removeprefix("sample: ").partition(", ")
    sample = next(each for each in SAMPLES[driver] if each.name == sample_name)
    made, content = sample.make(folder)
    if isinstance(made, bytes):
        path = folder / f"disk.{driver}"
        path.write_bytes(made)
    else:
        path = made
    raw = folder / "content-of-sample"
    raw.write_bytes(content)
    options = ("--format", "raw") if driver == "raw" else ()
    with open_source(str(path), format_name=driver) as opened:
        sector_size = opened.disk(0).image.info.sector_size
    return Subject(name, path, options, len(content), sector_size, raw, basis="the sample's own bytes")
