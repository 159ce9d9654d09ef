"""The disks of an appliance: from what the descriptor lists to the bytes of an image, in one piece, in chunks, or
compressed.

Specification: DMTF DSP0243 1.1.1 and 2.1.1, References/File: href, size, compression, chunkSize.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from diskfs_formats.errors import CorruptImage, DiskfsError, TruncatedImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.gzipped import GzipSource, is_gzip
from diskfs_formats.ova_package import Package
from diskfs_formats.ovf import OvfDisk, OvfFile, chunk_name, resolve_href
from diskfs_formats.source import ByteSource, ConcatenatedSource
from diskfs_formats.tar import MAX_MEMBERS
from diskfs_formats.text import printable

HEAD_SIZE = 4
"""Bytes from the start of a disk's file that tell whether it is compressed."""

_UNCOMPRESSED = frozenset({"", "identity"})
_GZIP = "gzip"
_CHUNK_SUFFIX = re.compile(r"\.(\d{9})")


@dataclass(frozen=True, slots=True)
class ApplianceDisk:
    """A disk of the appliance.

    `index` counts from 0 in the order of the hardware. `file_name` is the member that holds the disk, without the
    number of a chunk; where there is none, the href. `findings` is what was noticed about its file without opening it.
    The rest is what the descriptor says, and may be wrong; `capacity` is in bytes.
    """

    index: int
    disk_id: str
    file_name: str
    href: str
    compression: str
    chunk_size: int | None
    parent_ref: str
    format_uri: str
    capacity: int | None
    findings: tuple[Finding, ...]
    _open: Callable[[], ByteSource] = field(repr=False, compare=False)

    def open(self) -> ByteSource:
        """Return the image file: chunks joined, gzip undone. Every call opens it anew; keep what it returns.

        Raises CorruptImage if files are missing or have the wrong size, UnsafeReference for an href that leads out of
        the appliance, UnsupportedFeature for a compression that is not read. The content is checked by its driver.
        """
        return self._open()


class _StoredFile(NamedTuple):
    """The bytes of a file as they are stored, and the members that hold them; `name` is without a chunk's number."""

    source: ByteSource
    name: str
    members: list[str]


class DiskFiles:
    """From the files that a descriptor lists to the bytes of its disks."""

    def __init__(self, package: Package, descriptor_name: str) -> None:
        self._package = package
        self._descriptor_name = descriptor_name
        self._where = package.source(descriptor_name).name
        self._of_disks: set[OvfFile] = set()

    def disk(self, index: int, disk: OvfDisk, file: OvfFile | None) -> ApplianceDisk:
        """Return a disk that opens its file when asked; note at once what can be seen without doing so."""
        file_name = file.href if file else disk.file_ref or ""
        try:
            required = self._required(disk, file)
            self._of_disks.add(required)
            stored = self._stored(required)
            file_name = stored.name
            self._require_known_compression(required)
            findings = tuple(_disagreements(required, stored.source))
        except DiskfsError as error:
            findings = (Finding("ova-disk-unavailable", Severity.ERROR, str(error)),)
        return ApplianceDisk(
            index=index,
            disk_id=disk.disk_id,
            file_name=file_name,
            href=file.href if file else "",
            compression=file.compression if file else "",
            chunk_size=file.chunk_size if file else None,
            parent_ref=disk.parent_ref,
            format_uri=disk.format_uri,
            capacity=disk.capacity,
            findings=findings,
            _open=lambda: self._image(self._required(disk, file)),
        )

    def member_names(self, file: OvfFile, findings: list[Finding]) -> list[str]:
        """Return the names under which a file is stored; none if it is not there, which a disk says for itself."""
        try:
            return self._stored(file).members
        except DiskfsError as error:
            if file not in self._of_disks:
                findings.append(Finding("ova-file-unavailable", Severity.WARNING, str(error)))
            return []

    def _required(self, disk: OvfDisk, file: OvfFile | None) -> OvfFile:
        if file is None:
            raise CorruptImage(
                f"{self._package.name}: the disk {printable(disk.disk_id, 80)!r} has the file "
                f"{printable(disk.file_ref or '', 80)!r}, which the descriptor's References section does not list"
            )
        return file

    def _image(self, file: OvfFile) -> ByteSource:
        """Return the content of a file, decompressed if it is compressed, whatever the descriptor says."""
        self._require_known_compression(file)
        stored = self._stored(file).source
        return GzipSource(stored, stored.name) if is_gzip(_head(stored)) else stored

    def _require_known_compression(self, file: OvfFile) -> None:
        if file.compression not in _UNCOMPRESSED and file.compression != _GZIP:
            raise UnsupportedFeature(
                f"{self._package.name}: the file {printable(file.href)!r} is compressed with "
                f"{printable(file.compression, 40)!r}; gzip is the compression that is read"
            )

    def _stored(self, file: OvfFile) -> _StoredFile:
        """Find a file, in one piece or in chunks."""
        if file.chunk_size is not None:
            try:
                first = self._resolve(chunk_name(file.href, 0))
            except CorruptImage:
                # No chunks are there: a chunkSize that was not made use of, if the file is there whole.
                pass
            else:
                return self._joined(file, first.rpartition(".")[0], file.chunk_size)
        name = self._resolve(file.href)
        return _StoredFile(self._package.source(name), name, [name])

    def _resolve(self, href: str) -> str:
        return resolve_href(href, self._package, self._descriptor_name, where=self._where)

    def _joined(self, file: OvfFile, base: str, chunk_size: int) -> _StoredFile:
        """Join the chunks of a file, if they are all there and none is too long or too short."""
        names: list[str] = []
        while len(names) < MAX_MEMBERS and (name := chunk_name(base, len(names))) in self._package:
            names.append(name)
        # One beyond a gap is looked for, so that a folder, which cannot be listed, shows it too.
        after_gap = chunk_name(base, len(names) + 1) in self._package or any(
            name.startswith(base) and (match := _CHUNK_SUFFIX.fullmatch(name, len(base))) and int(match[1]) > len(names)
            for name in self._package.known_names()
        )
        shown = printable(base)
        where = f"{self._package.name}: the file {shown!r} in chunks of {chunk_size} bytes"
        if after_gap:
            raise CorruptImage(f"{where}: chunk {len(names)} is missing, and there is one after it")
        pieces = [self._package.source(name) for name in names]
        for number, piece in enumerate(pieces):
            is_last = number == len(pieces) - 1
            if piece.size > chunk_size or (piece.size < chunk_size and not is_last):
                error = CorruptImage if piece.size > chunk_size else TruncatedImage
                raise error(f"{where}: chunk {number} of {len(pieces)} has {piece.size} bytes")
        size = sum(piece.size for piece in pieces)
        if file.size and size != file.size:
            error = TruncatedImage if size < file.size else CorruptImage
            raise error(
                f"{where}: {len(pieces)} chunks have {size} bytes together, the descriptor says {file.size}: "
                f"{'chunks are missing at the end' if size < file.size else 'they do not belong together'}"
            )
        return _StoredFile(ConcatenatedSource(pieces, f"{self._package.name}:{shown}"), base, names)


def _disagreements(file: OvfFile, stored: ByteSource) -> Iterator[Finding]:
    """Yield what the descriptor says of a file and the file does not show."""
    if file.size and file.size != stored.size:
        yield Finding(
            "ovf-size",
            Severity.WARNING,
            f"{stored.name}: the file has {stored.size} bytes, the descriptor says {file.size}",
        )
    is_compressed = is_gzip(_head(stored))
    if is_compressed != (file.compression == _GZIP):
        says = "is compressed with gzip" if is_compressed else "is not compressed"
        yield Finding(
            "ovf-compression",
            Severity.WARNING,
            f"{stored.name}: the file {says}, the descriptor says {file.compression or 'nothing of it'!r}",
        )


def _head(source: ByteSource) -> bytes:
    return source.read_at(0, min(HEAD_SIZE, source.size))
