"""An appliance: a virtual machine's descriptor with its disks, in one tar archive (OVA) or as files in a folder (OVF).

Specification: DMTF DSP0243 1.1.1 and 2.1.1, "OVF package". The descriptor says which files are disks; the other
modules say what it means (ovf), where the members of an archive lie (tar), what a compressed member holds (gzipped)
and which digests it should have (manifest). A disk is found here and opened by its own format's driver.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from diskfs_formats.driver import RelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, ParentUnavailable, TruncatedImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.gzipped import GzipSource, is_gzip
from diskfs_formats.manifest import MAX_MANIFEST_SIZE, parse_manifest, verify_manifest
from diskfs_formats.ovf import (
    MAX_DESCRIPTOR_SIZE,
    OvfDescriptor,
    OvfDisk,
    OvfFile,
    chunk_name,
    parse_descriptor,
    resolve_href,
)
from diskfs_formats.source import ByteSource, ConcatenatedSource, SourceSlice
from diskfs_formats.tar import MAX_MEMBERS, read_tar_index
from diskfs_formats.text import printable

DESCRIPTOR_SUFFIX = ".ovf"
MANIFEST_SUFFIX = ".mf"
HEAD_SIZE = 4
"""Bytes from the start of a disk's file that tell whether it is compressed."""

_UNCOMPRESSED = frozenset({"", "identity"})
_GZIP = "gzip"
_CHUNK_SUFFIX = re.compile(r"\.(\d{9})")


class ApplianceMember(NamedTuple):
    """A file of the appliance as it is stored. Closing its source leaves the appliance open."""

    name: str
    source: ByteSource


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


class _Package(Protocol):
    """The files of an appliance by name. What `source` returns does not close the file when it is closed."""

    @property
    def name(self) -> str: ...

    def known_names(self) -> Iterable[str]: ...

    def __contains__(self, name: object, /) -> bool: ...

    def source(self, name: str, /) -> ByteSource: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Appliance:
    """An open appliance. Owns its source and the files it opened; safe to share between threads.

    `findings` is about the archive, the descriptor and the manifest's name; each disk has its own.
    """

    name: str
    container: Literal["ova", "ovf"]
    descriptor_name: str
    descriptor: OvfDescriptor
    members: tuple[ApplianceMember, ...]
    disks: tuple[ApplianceDisk, ...]
    findings: tuple[Finding, ...]
    manifest_name: str | None
    _package: _Package = field(repr=False, compare=False)

    def verify(self) -> Iterator[Finding]:
        """Compare every file with the manifest; reads the whole appliance. Never raises for what is in the files."""
        if self.manifest_name is None:
            yield Finding("manifest-missing", Severity.INFO, f"{self.name}: the appliance has no manifest")
            return
        files = dict(self.members)
        source = files[self.manifest_name]
        try:
            # One byte more than is taken, so that a longer one shows.
            data = source.read_at(0, min(source.size, MAX_MANIFEST_SIZE + 1))
            manifest = parse_manifest(data, self.manifest_name)
        except DiskfsError as error:
            yield Finding("manifest-unreadable", Severity.ERROR, f"{self.name}: {error}")
            return
        yield from verify_manifest(manifest, files)

    def close(self) -> None:
        """Close every file of the appliance, and with it every disk; closing twice is harmless."""
        self._package.close()


def open_ova(source: ByteSource) -> Appliance:
    """Open an appliance in a tar archive: reads its headers, the descriptor, and the first bytes of every disk.

    Raises ImageError if the archive or the descriptor cannot be read; a disk whose file is missing or damaged is a
    finding, and the others open. On success the appliance owns `source`.
    """
    index = read_tar_index(source)
    findings = list(index.findings)
    package = _Archive(
        source,
        {
            member.name: SourceSlice(source, member.offset, member.size, f"{source.name}:{printable(member.name)}")
            for member in index.members
        },
    )
    names = package.known_names()
    descriptor_name = _find_descriptor(source, names, findings)
    manifest_name = _find_manifest(names, descriptor_name, findings)
    return _open(package, "ova", descriptor_name, manifest_name, findings)


def open_ovf(source: ByteSource, related: RelatedFiles, file_name: str | None = None) -> Appliance:
    """Open an appliance whose descriptor is `source`, called `file_name`, and whose files lie beside it.

    Raises ImageError if the descriptor cannot be read; a file that is missing or may not be opened is a finding, and
    the others open. On success the appliance owns `source` and what it opened of `related`.
    """
    # The source's own name is made for messages: cut, and escaped.
    descriptor_name = _bare_name(source.name) if file_name is None else file_name
    package = _Folder(source, descriptor_name, related)
    findings: list[Finding] = []
    try:
        manifest_name = _manifest_beside(package, descriptor_name, findings)
        return _open(package, "ovf", descriptor_name, manifest_name, findings)
    except BaseException:
        package.close_related()
        raise


class _Archive:
    """The members of a tar archive."""

    def __init__(self, source: ByteSource, members: dict[str, SourceSlice]) -> None:
        self.name = source.name
        self._source = source
        self._members = members

    def known_names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def __contains__(self, name: object, /) -> bool:
        return name in self._members

    def source(self, name: str, /) -> ByteSource:
        return self._members[name]

    def close(self) -> None:
        self._source.close()


class _Folder:
    """The files beside a descriptor, each opened once, when it is first asked for."""

    def __init__(self, descriptor: ByteSource, descriptor_name: str, related: RelatedFiles) -> None:
        self.name = descriptor.name
        self._descriptor = descriptor
        self._descriptor_name = descriptor_name
        self._related = related
        self._opened: dict[str, ByteSource] = {}
        self._lock = threading.Lock()

    def known_names(self) -> tuple[str, ...]:
        with self._lock:
            return (self._descriptor_name, *self._opened)

    def __contains__(self, name: object, /) -> bool:
        """Tell whether the file is there; raises UnsafeReference for a name that is not a bare one."""
        if name == self._descriptor_name:
            return True
        try:
            self._file(str(name))
        except ParentUnavailable:
            return False
        return True

    def source(self, name: str, /) -> ByteSource:
        whole = self._descriptor if name == self._descriptor_name else self._file(name)
        return SourceSlice(whole, 0, whole.size, whole.name)

    def _file(self, name: str) -> ByteSource:
        with self._lock:
            found = self._opened.get(name)
            if found is None:
                found = self._opened[name] = self._related.open(name)
            return found

    def close_related(self) -> None:
        with self._lock:
            for source in self._opened.values():
                source.close()

    def close(self) -> None:
        self.close_related()
        self._descriptor.close()


def _bare_name(name: str) -> str:
    path = name.partition("?")[0] if "://" in name else name
    return path.rpartition("/")[2]


def _manifest_for(descriptor_name: str) -> str:
    """Return the name that the manifest of a descriptor should have."""
    is_suffixed = descriptor_name.lower().endswith(DESCRIPTOR_SUFFIX)
    return (descriptor_name[: -len(DESCRIPTOR_SUFFIX)] if is_suffixed else descriptor_name) + MANIFEST_SUFFIX


def _find_descriptor(source: ByteSource, names: tuple[str, ...], findings: list[Finding]) -> str:
    descriptors = [name for name in names if name.lower().endswith(DESCRIPTOR_SUFFIX)]
    shown = ", ".join(repr(printable(name, 80)) for name in descriptors[:4])
    if not descriptors:
        raise CorruptImage(f"{source.name}: there is no {DESCRIPTOR_SUFFIX} inside: this is a tar, but no appliance")
    if descriptors[0] == names[0]:
        if len(descriptors) > 1:
            findings.append(
                Finding(
                    "ova-several-descriptors",
                    Severity.WARNING,
                    f"{source.name}: it has {len(descriptors)} descriptors ({shown}); the first member is used",
                )
            )
    elif len(descriptors) > 1:
        raise CorruptImage(
            f"{source.name}: it has {len(descriptors)} descriptors ({shown}) and none is the first member: which one "
            "is meant cannot be told"
        )
    else:
        findings.append(
            Finding(
                "ovf-not-first",
                Severity.WARNING,
                f"{source.name}: the descriptor {shown} is not the first member, as the specification asks",
            )
        )
    return descriptors[0]


def _find_manifest(names: tuple[str, ...], descriptor_name: str, findings: list[Finding]) -> str | None:
    """Return the manifest with the descriptor's base name, or else the only one there is."""
    manifests = [name for name in names if name.lower().endswith(MANIFEST_SUFFIX)]
    expected = _manifest_for(descriptor_name)
    for name in manifests:
        if name.lower() == expected.lower():
            return name
    if not manifests:
        return None
    used = len(manifests) == 1
    findings.append(
        Finding(
            "manifest-name",
            Severity.WARNING,
            f"{printable(manifests[0])}: a manifest should be called {printable(expected)!r}; "
            + ("it is used all the same" if used else f"none of the {len(manifests)} is used"),
        )
    )
    return manifests[0] if used else None


def _manifest_beside(package: _Package, descriptor_name: str, findings: list[Finding]) -> str | None:
    """Return the manifest in the descriptor's folder, if there is one that may be opened."""
    name = _manifest_for(descriptor_name)
    try:
        return name if name in package else None
    except DiskfsError as error:
        findings.append(Finding("manifest-unreadable", Severity.WARNING, f"{package.name}: {error}"))
        return None


def _open(
    package: _Package,
    container: Literal["ova", "ovf"],
    descriptor_name: str,
    manifest_name: str | None,
    findings: list[Finding],
) -> Appliance:
    source = package.source(descriptor_name)
    # One byte more than is taken, so that a longer one shows.
    data = source.read_at(0, min(source.size, MAX_DESCRIPTOR_SIZE + 1))
    descriptor = parse_descriptor(data, source.name)
    findings.extend(descriptor.findings)
    files = _Files(package, descriptor_name)
    disks = tuple(
        files.disk(index, disk, descriptor.file_of(disk)) for index, disk in enumerate(descriptor.disk_order())
    )
    if not disks:
        findings.append(
            Finding("ova-no-disks", Severity.INFO, f"{package.name}: the appliance has no disk with a file")
        )
    if container == "ova":
        names: Iterable[str] = package.known_names()
    else:
        listed = [name for file in descriptor.files for name in files.member_names(file, findings)]
        names = dict.fromkeys((descriptor_name, *([manifest_name] if manifest_name else []), *listed))
    return Appliance(
        name=package.name,
        container=container,
        descriptor_name=descriptor_name,
        descriptor=descriptor,
        members=tuple(ApplianceMember(name, package.source(name)) for name in names),
        disks=disks,
        findings=tuple(findings),
        manifest_name=manifest_name,
        _package=package,
    )


class _StoredFile(NamedTuple):
    """The bytes of a file as they are stored, and the members that hold them; `name` is without a chunk's number."""

    source: ByteSource
    name: str
    members: list[str]


class _Files:
    """From the files that a descriptor lists to the bytes of its disks."""

    def __init__(self, package: _Package, descriptor_name: str) -> None:
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
