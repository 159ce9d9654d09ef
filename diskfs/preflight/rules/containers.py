"""VMIE-FMT: is the file of a format, and of a variant, that the service reads?"""

import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from diskfs.preflight.container import DiskFile, VhdFacts, VmdkFacts
from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Operation
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, not_checked, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs.preflight.stream_end import check_last_grain
from diskfs_formats.errors import CorruptImage, UnknownFormat
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.gzipped import GzipSource
from diskfs_formats.vhd.footer import FOOTER_SIZE, DiskType
from diskfs_formats.vmdk.descriptor import NO_PARENT
from diskfs_formats.vmdk.extents import DEVICE_CREATE_TYPES, DEVICE_TYPES, SESPARSE_TYPE
from diskfs_formats.vmdk.header import COMPRESSION_DEFLATE, FLAG_COMPRESSED, FLAG_MARKERS

LookAtVmdk: TypeAlias = Callable[[Facts, DiskFile, VmdkFacts], Outcome]

MAX_NAMED = 8
"""Disks or chunks that are named in a finding."""


@check("VMIE-FMT-01")
def image_format(facts: Facts) -> Iterator[Outcome]:
    """The signature of each disk's file, never its name, is that of VMDK, VHD, VHDX or a raw disk; or the file is an
    OVA whose disks are.
    """
    yield from _formats(facts, {"vmdk", "vhd", "vhdx", "raw"}, is_ova_taken=True)


@check("VMIE-FMT-02", "VMIE-SNAP-05")
def snapshot_format(facts: Facts) -> Iterator[Outcome]:
    """As VMIE-FMT-01, and the file is no OVA."""
    yield from _formats(facts, {"vmdk", "vhd", "vhdx", "raw"}, is_ova_taken=False)


@check("VMIE-FMT-03")
def instance_format(facts: Facts) -> Iterator[Outcome]:
    """As VMIE-FMT-01, and the file is neither OVA nor VHDX."""
    yield from _formats(facts, {"vmdk", "vhd", "raw"}, is_ova_taken=False)


def _formats(facts: Facts, taken: set[str], *, is_ova_taken: bool) -> Iterator[Outcome]:
    if facts.container == "ova":
        if not is_ova_taken:
            names = ", ".join(file.name for file in facts.files[:MAX_NAMED])
            yield failed(f"the file is an OVA ({names})", _convert(facts, "disk0.vmdk", "--disk 0 -O vmdk"))
            return
        yield passed(f"an OVA with {_count(len(facts.files), 'disk')}")
        if not facts.files:
            yield failed("the OVA has no disk with a file")
        for file in facts.files:
            if isinstance(file.stored, GzipSource):
                yield unknown(f"{file} is compressed with gzip in the OVA, of which the guide says nothing")
    for file in facts.files:
        yield _format(facts, file, taken)


def _format(facts: Facts, file: DiskFile, taken: set[str]) -> Outcome:
    if file.stored is None:
        return failed(f"{file}: {file.problem}", "export the VM again, with all of its files")
    candidates = file.candidates
    if len(candidates) > 1:
        return unknown(f"{file} could be {' or '.join(candidates)}: say which with --format")
    name = candidates[0]
    if name != "empty" and isinstance(file.problem, UnknownFormat):
        return unknown(str(file.problem))
    if name == "raw" and file.problem is not None:
        # A raw disk always opens: this is an archive or a descriptor.
        return failed(str(file.problem), "export the VM again")
    if name in taken:
        return passed(f"{file} is {name}" if name != "raw" else f"{file} is taken as raw: it has no other signature")
    if name == "empty":
        return failed(f"{file} is an empty file", "export the VM again")
    if name.endswith("-compressed"):
        return failed(f"{file} is a {name} file", "decompress it, then run diskfs preflight on what comes out")
    if name == "ISO 9660":
        return failed(f"{file} is the image of an optical disc (ISO 9660)", "import the disk of an installed system")
    if file.disk is not None and file.disk.opened:
        return failed(f"{file} is {name}", _convert(facts, "disk.vmdk", _which(facts, file) + "-O vmdk"))
    return failed(f"{file} is {name}", "export the disk as VMDK (stream-optimized), VHD or raw")


@check("VMIE-FMT-04")
def stream_optimized(facts: Facts) -> Iterator[Outcome]:
    """The VMDK's sparse header has the flags for compressed grains and markers (0x30000) and compression 1, and its
    descriptor, if there is one, says createType="streamOptimized".
    """
    yield from _for_vmdk(facts, _stream_optimized)


def _stream_optimized(facts: Facts, file: DiskFile, vmdk: VmdkFacts) -> Outcome:
    if facts.container is not None and facts.request.operation is Operation.IMPORT_IMAGE:
        remedy = _convert(facts, "vm.ova", "-O ova")  # all disks again, in an appliance again
    else:
        remedy = _convert(facts, "disk.vmdk", _which(facts, file) + "-O vmdk --variant streamOptimized")
    kind = f"createType={vmdk.create_type!r}" if vmdk.create_type else "no createType"
    if vmdk.flags is None:
        return failed(f"{file}: {vmdk.kind}, {kind}: there is no sparse header at offset 0", remedy)
    wanted = FLAG_COMPRESSED | FLAG_MARKERS
    header = f"flags {vmdk.flags:#x} at offset 8, compressAlgorithm {vmdk.compression} at offset 77"
    if vmdk.flags & wanted != wanted or vmdk.compression != COMPRESSION_DEFLATE:
        return failed(f"{file}: {kind}; {header}", remedy)
    if vmdk.create_type and vmdk.create_type.lower() != "streamoptimized":
        return failed(f"{file}: {header}, but the descriptor at {vmdk.descriptor_offset:#x} has {kind}", remedy)
    return passed(f"{file}: {kind}, {header}")


@check("VMIE-FMT-05")
def vhd_is_whole(facts: Facts) -> Iterator[Outcome]:
    """The VHD's footer is the last 512 bytes with the right checksum, its type is fixed (2) or dynamic (3), and its
    size fits; a dynamic disk has an identical copy at offset 0 and a dynamic header where the footer says, and its
    tables are sound.
    """
    vhds = [(file, file.vhd) for file in facts.files if file.vhd is not None]
    if not vhds:
        yield not_applicable("no disk is a VHD")
    for file, vhd in vhds:
        problems = list(_vhd_problems(file, vhd))
        if not problems and isinstance(file.problem, CorruptImage):
            problems.append(str(file.problem))
        for problem in problems:
            yield failed(f"{file}: {problem}", _convert(facts, "disk.vhd", _which(facts, file) + "-O vhd"))
        if not problems:
            yield passed(f"{file}: a {'fixed' if vhd.disk_type == DiskType.FIXED else 'dynamic'} VHD")


def _vhd_problems(file: DiskFile, vhd: VhdFacts) -> Iterator[str]:
    if vhd.footer_offset is None:
        yield "there is no footer at the end of the file"
        return
    where = f"footer at offset {vhd.footer_offset:#x}"
    if vhd.footer_size != FOOTER_SIZE:
        yield f"{where}: it has {vhd.footer_size} bytes, as before Virtual PC 2004"
    if vhd.checksum != vhd.computed_checksum:
        yield f"{where}: checksum {vhd.checksum:#010x}, the bytes give {vhd.computed_checksum:#010x}"
    if vhd.disk_type == DiskType.DIFFERENCING:
        yield f"{where}: disk type 4: the disk is differencing"
    elif vhd.disk_type not in frozenset(DiskType):
        yield f"{where}: disk type {vhd.disk_type}; 2 (fixed) and 3 (dynamic) are taken"
    elif vhd.disk_type == DiskType.FIXED:
        expected = vhd.current_size + FOOTER_SIZE
        if file.window.size != expected:
            yield (
                f"{where}: a fixed disk of {vhd.current_size} bytes, so the file would have {expected}; it has "
                f"{file.window.size}"
            )
        return
    if vhd.copy_differs_at is not None:
        yield f"{where}: its copy at offset 0 differs from byte {vhd.copy_differs_at} on"
    if not vhd.has_dynamic_header:
        yield f"{where}: there is no dynamic header (cxsparse) at its data offset, {vhd.data_offset:#x}"


@check("VMIE-FMT-06")
def vhdx_is_whole(facts: Facts) -> Iterator[Outcome]:
    """The VHDX's metadata item File Parameters has HasParent 0; a log that is not replayed (LogGuid not 0) is a
    warning.
    """
    found = False
    for file in facts.files:
        if file.stored is not None and file.format == "vhdx" and isinstance(file.problem, CorruptImage):
            found = True
            yield failed(f"{file}: {file.problem}")
            continue
        vhdx = file.vhdx
        if vhdx is None:
            continue
        found = True
        remedy = _convert(facts, "disk.vhdx", _which(facts, file) + "-O vhdx")
        if vhdx.has_parent:
            yield failed(f"{file}: File Parameters has HasParent set: the disk is differencing", remedy)
        elif vhdx.log_guid:
            yield failed(
                f"{file}: the log {vhdx.log_guid} was not replayed: the file was not closed cleanly",
                remedy,
                severity=Severity.WARNING,
            )
        else:
            yield passed(f"{file}: a fixed or dynamic VHDX")
    if not found:
        yield not_applicable("no disk is a VHDX")


@check("VMIE-FMT-07")
def several_disks(facts: Facts) -> Iterator[Outcome]:
    """Counts the disks that the OVA's descriptor lists with a file."""
    if facts.container != "ova":
        yield not_applicable("the file is no OVA")
        return
    names = ", ".join(file.name for file in facts.files[:MAX_NAMED])
    yield passed(f"{_count(len(facts.files), 'disk')}: {names}")


@check("VMIE-FMT-08")
def one_file_per_disk(facts: Facts) -> Iterator[Outcome]:
    """No file of the OVF descriptor has a chunkSize, no member is named as a chunk, and no VMDK lists several
    extents.
    """
    appliance = facts.source.appliance if facts.container is not None else None
    if appliance is not None:
        for disk in appliance.disks:
            if disk.chunk_size is not None:
                yield failed(
                    f"{appliance.descriptor_name}: the file {disk.href!r} has chunkSize {disk.chunk_size}",
                    _convert(facts, "joined.ova", "-O ova"),
                )
    for file in facts.files:
        if file.stored is not None and (vmdk := file.vmdk) is not None and len(vmdk.extent_types) > 1:
            yield failed(
                f"{file}: createType={vmdk.create_type!r}: the descriptor lists {len(vmdk.extent_types)} extents",
                _convert(facts, "disk.vmdk", _which(facts, file) + "-O vmdk"),
            )


@check("VMIE-FMT-09")
def no_delta(facts: Facts) -> Iterator[Outcome]:
    """The VMDK is no seSparse extent, lists none, and its descriptor's parentCID is ffffffff: it is no delta."""
    yield from _for_vmdk(facts, _delta)


def _delta(facts: Facts, file: DiskFile, vmdk: VmdkFacts) -> Outcome:
    remedy = f"consolidate the snapshots and export again, or {_convert(facts, 'disk.vmdk', '-O vmdk')}"
    if vmdk.kind in {"seSparse", "COWD"}:
        return failed(f"{file}: the file is a {vmdk.kind} extent", remedy)
    if vmdk.create_type.lower() == "sesparse" or SESPARSE_TYPE in vmdk.extent_types:
        return failed(f"{file}: the descriptor has an extent of type SESPARSE", remedy)
    if vmdk.parent_cid != NO_PARENT:
        return failed(f"{file}: parentCID={vmdk.parent_cid:08x}: the disk is a delta", remedy)
    return passed()


@check("VMIE-FMT-10")
def no_device_mapping(facts: Facts) -> Iterator[Outcome]:
    """The VMDK's createType and extent types are not those of a raw device mapping or a physical disk."""
    yield from _for_vmdk(facts, _device)


def _device(_facts: Facts, file: DiskFile, vmdk: VmdkFacts) -> Outcome:
    devices = [kind for kind in vmdk.extent_types if kind in DEVICE_TYPES]
    if vmdk.create_type.lower() in DEVICE_CREATE_TYPES or devices:
        kinds = f", extents of type {', '.join(devices[:4])}" if devices else ""
        return failed(f"{file}: createType={vmdk.create_type!r}{kinds}: the disk is a device of the host")
    return passed()


@check("VMIE-FMT-11")
def vmdk_is_intact(facts: Facts) -> Iterator[Outcome]:
    """Header, footer, grain directory and end-of-stream marker are read, and where there is no footer the place of the
    last grain; with --deep every grain is inflated, and an
    OVA's manifest compared, which reads the whole file.
    """
    files = [file for file in facts.files if file.stored is None or "vmdk" in file.candidates]
    if not files:
        yield not_applicable("no disk is a VMDK")
    for file in files:
        if isinstance(file.problem, CorruptImage):
            yield failed(f"{file}: {file.problem}")
            continue
        vmdk = file.vmdk
        if file.problem is not None or vmdk is None:
            yield unknown(f"{file} could not be opened: {file.problem}")
        elif vmdk.is_stream and vmdk.is_directory_at_end and not vmdk.has_end_of_stream:
            yield failed(f"{file}: the last 512 bytes are no end-of-stream marker: the file is incomplete")
        elif vmdk.is_stream and not vmdk.is_directory_at_end and (problem := _cut(file)):
            yield failed(f"{file}: {problem}")
        elif facts.deep and file.disk is not None:
            errors = list(_errors(file.disk.check()))
            for error in errors:
                yield failed(f"{file}: {error.message}")
            if not errors:
                yield passed(f"{file}: every grain can be inflated")
        elif vmdk.is_stream and not vmdk.has_end_of_stream:
            yield failed(
                f"{file}: there is no end-of-stream marker in the last 512 bytes: qemu-img writes none",
                _convert(facts, "disk.vmdk", _which(facts, file) + "-O vmdk"),
                severity=Severity.WARNING,
            )
        else:
            yield not_checked(f"{file}: the header is whole; inflating every grain reads the whole file: add --deep")
    appliance = facts.source.appliance if facts.container is not None else None
    if facts.deep and appliance is not None:
        for error in _errors(appliance.verify()):
            yield failed(error.message)


def _cut(file: DiskFile) -> str:
    try:
        check_last_grain(file.bytes)
    except CorruptImage as error:
        return str(error)
    return ""


def _errors(findings: Iterable[Finding]) -> Iterator[Finding]:
    return (finding for finding in findings if finding.severity is Severity.ERROR)


@check("VMIE-FMT-12")
def vmdk_is_compressed(facts: Facts) -> Iterator[Outcome]:
    """The VMDK's compressAlgorithm is not 0, and the file is no OVA under another name."""
    if facts.container == "ova":
        yield failed(
            f"{facts.location} is an OVA, whatever its name", _convert(facts, "disk0.vmdk", "--disk 0 -O vmdk")
        )
        return
    yield from _for_vmdk(facts, _compression)


def _compression(facts: Facts, file: DiskFile, vmdk: VmdkFacts) -> Outcome:
    if vmdk.compression == 0:
        return failed(f"{file}: compressAlgorithm at offset 77 is 0", _convert(facts, "disk.vmdk", "-O vmdk"))
    return passed()


@check("VMIE-FMT-13")
def one_disk_for_an_instance(facts: Facts) -> Iterator[Outcome]:
    """Counts the disks of the source when it is meant for import-instance."""
    if facts.request.operation.value == "import-image":
        yield passed(f"{_count(len(facts.files), 'disk')}; import-image takes several")
    elif len(facts.files) > 1:
        yield failed(f"{len(facts.files)} disks", f"use import-image: diskfs preflight {_quoted(facts)}")


@check("VMIE-FMT-14")
def packed_as_ova(facts: Facts) -> Iterator[Outcome]:
    """The source is no OVF descriptor with its files beside it."""
    if facts.container == "ovf":
        yield failed(
            f"{facts.location} is an OVF descriptor with its files beside it", _convert(facts, "vm.ova", "-O ova")
        )


def _for_vmdk(facts: Facts, look: LookAtVmdk) -> Iterator[Outcome]:
    found = False
    for file in facts.files:
        if file.stored is None:
            yield unknown(f"{file}: {file.problem}")
            found = True
            continue
        vmdk = file.vmdk
        if vmdk is not None:
            found = True
            if vmdk.problem:
                yield unknown(f"{file}: {vmdk.problem}")
            yield look(facts, file, vmdk)
    if not found:
        yield not_applicable("no disk is a VMDK")


def _which(facts: Facts, file: DiskFile) -> str:
    return f"--disk {file.index} " if facts.container is not None else ""


def _convert(facts: Facts, target: str, options: str) -> str:
    return f"diskfs convert {_quoted(facts)} {target} {options}"


def _quoted(facts: Facts) -> str:
    return shlex.quote(facts.location)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
