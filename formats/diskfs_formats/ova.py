"""An appliance: a virtual machine's descriptor with its disks, in one tar archive (OVA) or as files in a folder (OVF).

Specification: DMTF DSP0243 1.1.1 and 2.1.1, "OVF package". The descriptor says which files are disks; the other
modules say what it means (ovf), where the members of an archive lie (tar), what a compressed member holds (gzipped)
and which digests it should have (manifest). A disk is found here and opened by its own format's driver.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from diskfs_formats.driver import RelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.manifest import MAX_MANIFEST_SIZE, parse_manifest, verify_manifest
from diskfs_formats.ova_disks import ApplianceDisk, DiskFiles
from diskfs_formats.ova_package import Archive, Folder, Package
from diskfs_formats.ovf import MAX_DESCRIPTOR_SIZE, OvfDescriptor, parse_descriptor
from diskfs_formats.source import ByteSource, SourceSlice
from diskfs_formats.tar import read_tar_index
from diskfs_formats.text import printable

DESCRIPTOR_SUFFIX = ".ovf"
MANIFEST_SUFFIX = ".mf"


class ApplianceMember(NamedTuple):
    """A file of the appliance as it is stored. Closing its source leaves the appliance open."""

    name: str
    source: ByteSource


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
    _package: Package = field(repr=False, compare=False)

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
    package = Archive(
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
    package = Folder(source, descriptor_name, related)
    findings: list[Finding] = []
    try:
        manifest_name = _manifest_beside(package, descriptor_name, findings)
        return _open(package, "ovf", descriptor_name, manifest_name, findings)
    except BaseException:
        package.close_related()
        raise


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


def _manifest_beside(package: Package, descriptor_name: str, findings: list[Finding]) -> str | None:
    """Return the manifest in the descriptor's folder, if there is one that may be opened."""
    name = _manifest_for(descriptor_name)
    try:
        return name if name in package else None
    except DiskfsError as error:
        findings.append(Finding("manifest-unreadable", Severity.WARNING, f"{package.name}: {error}"))
        return None


def _open(
    package: Package,
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
    files = DiskFiles(package, descriptor_name)
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
