"""What an OVF descriptor says: files, disks and machines, and the order in which a guest meets the disks.

Specification: DMTF DSP0243 1.1.1 and 2.1.1, Open Virtualization Format. Sizes in bytes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from diskfs_formats.findings import Finding
from diskfs_formats.ovf_units import is_number
from diskfs_formats.tar import normalised_path

RESOURCE_DISK = 17
"""CIM ResourceType of a hard disk."""


@dataclass(frozen=True, slots=True)
class OvfFile:
    """A `File` of the References section. `size` is what the descriptor says: often wrong."""

    id: str
    href: str
    size: int | None = None
    compression: str = ""
    chunk_size: int | None = None


@dataclass(frozen=True, slots=True)
class OvfDisk:
    """A `Disk` of the DiskSection. `capacity` is in bytes, None if absent, a `${property}`, or not understood."""

    disk_id: str
    file_ref: str | None
    capacity: int | None = None
    capacity_text: str = ""
    format_uri: str = ""
    parent_ref: str = ""


@dataclass(frozen=True, slots=True)
class HardwareItem:
    """An `Item` of a VirtualHardwareSection; texts as they are written, empty where absent.

    `section` numbers the hardware sections of the virtual system, which may offer alternatives.
    """

    section: int
    instance_id: str = ""
    resource_type: int | None = None
    resource_sub_type: str = ""
    parent: str = ""
    address_on_parent: str = ""
    host_resource: str = ""
    automatic_allocation: str = ""
    configurations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VirtualSystem:
    """A virtual machine, its hardware in the order of the document."""

    id: str
    name: str
    items: tuple[HardwareItem, ...]


@dataclass(frozen=True, slots=True)
class OvfDescriptor:
    """A parsed descriptor, everything in the order of the document."""

    files: tuple[OvfFile, ...]
    disks: tuple[OvfDisk, ...]
    systems: tuple[VirtualSystem, ...]
    configurations: tuple[str, ...] = ()
    default_configuration: str | None = None
    findings: tuple[Finding, ...] = field(default=(), compare=False)
    _file_by_reference: Mapping[str, OvfFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # oVirt writes the href where the specification has the id; an id goes first.
        by_href = {file.href: file for file in reversed(self.files)}
        object.__setattr__(self, "_file_by_reference", by_href | {file.id: file for file in reversed(self.files)})

    @property
    def empty_disks(self) -> tuple[OvfDisk, ...]:
        """The disks without a file, which are made when the appliance is deployed."""
        return tuple(disk for disk in self.disks if disk.file_ref is None)

    def file_of(self, disk: OvfDisk) -> OvfFile | None:
        """Return the file that holds `disk`, or None if it has none or the References section does not list it."""
        return None if disk.file_ref is None else self._file_by_reference.get(disk.file_ref)

    def disk_order(self) -> tuple[OvfDisk, ...]:
        """Return the disks that have a file, in the order a guest meets them, each file once.

        Virtual systems as in the document; inside, hardware of the default configuration first, then controllers as
        in the document, then the address on the controller. Disks that no hardware item names come last.
        """
        return tuple(disk for disk, is_first in self._ordered() if is_first)

    def shared_files(self) -> tuple[OvfDisk, ...]:
        """Return the disks that `disk_order` leaves out because an earlier one has the same file."""
        return tuple(disk for disk, is_first in self._ordered() if not is_first)

    def _ordered(self) -> Iterator[tuple[OvfDisk, bool]]:
        """Yield every disk with a file once, and whether it is the first to use that file."""
        finder = DiskFinder(self)
        seen: set[OvfDisk] = set()
        used: set[str] = set()
        referenced = (
            disk
            for system in self.systems
            for item in self._items_in_order(system)
            if (disk := finder.find(item)) is not None
        )
        for disk in (*referenced, *self.disks):
            if disk.file_ref is None or disk in seen:
                continue
            seen.add(disk)
            file = self.file_of(disk)
            key = normalised_path(file.href) if file else disk.file_ref
            yield disk, key not in used
            used.add(key)

    def _items_in_order(self, system: VirtualSystem) -> list[HardwareItem]:
        controllers: dict[tuple[int, str], int] = {}
        for position, item in enumerate(system.items):
            controllers.setdefault((item.section, item.instance_id), position)
        last = len(system.items)

        def rank(item: HardwareItem) -> tuple[int, bool, int, bool, int]:
            # Deployments that are not the default come after it: their disks are often the same files.
            inactive = bool(item.configurations) and self.default_configuration not in item.configurations
            controller = controllers.get((item.section, item.parent), last) if item.parent else last
            address = item.address_on_parent
            has_address = is_number(address)
            return item.section, inactive, controller, not has_address, int(address) if has_address else 0

        return sorted(system.items, key=rank)


HOST_RESOURCE = re.compile(r"(?:ovf:)?/{1,2}(?P<kind>disk|file)/(?P<id>.+)", re.DOTALL)
_DISK_SUFFIXES = (".vmdk", ".vhd", ".vhdx", ".vdi", ".qcow2", ".qcow", ".raw", ".img")


class DiskFinder:
    """From the HostResource of a hardware item to the disk it means."""

    def __init__(self, descriptor: OvfDescriptor) -> None:
        self._by_id = {disk.disk_id: disk for disk in reversed(descriptor.disks)}
        self._by_file_ref = {disk.file_ref: disk for disk in reversed(descriptor.disks) if disk.file_ref}
        self._files = {file.id: file for file in descriptor.files}

    def find(self, item: HardwareItem) -> OvfDisk | None:
        """Return the disk, or None for any other device and for a reference to nothing."""
        text = item.host_resource
        match = HOST_RESOURCE.fullmatch(text)
        if match is None:
            if not text or item.resource_type != RESOURCE_DISK:
                return None
            # oVirt writes only the path that the disk's fileRef has, which ends with the disk's id.
            return self._by_file_ref.get(text) or self._by_id.get(text.rpartition("/")[2])
        if match["kind"] == "disk":
            return self._by_id.get(match["id"])
        file = self._files.get(match["id"])
        if file is None or item.resource_type != RESOURCE_DISK or not _is_disk_name(file.href):
            return None
        return self._by_file_ref.get(file.id) or OvfDisk(disk_id=file.id, file_ref=file.id)


def _is_disk_name(href: str) -> bool:
    return href.lower().removesuffix(".gz").endswith(_DISK_SUFFIXES)
