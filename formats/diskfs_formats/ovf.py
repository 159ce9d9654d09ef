"""The OVF descriptor: which files an appliance has, which of them are disks, and in which order a machine has them.

Variants: OVF 0.9 (VMware's draft), 1.x, 2.x, and the dialect of oVirt. Elements and attributes are matched by their
local names, because producers differ in prefixes and namespaces.
Specification: DMTF DSP0243 1.1.1 and 2.1.1, Open Virtualization Format. Sizes in bytes.

The text is parsed as a stream and only what is named here is kept: no tree is built, no entity expanded, nothing
else opened.
"""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import unquote

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from diskfs_formats.errors import CorruptImage, UnsafeReference, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.tar import normalised_path, path_problem
from diskfs_formats.text import printable

MAX_DESCRIPTOR_SIZE = 4 << 20
"""Bytes. The largest of 791 real descriptors has 4,094,918, nearly all of it one annotation; the next 1.7 million."""
MAX_DEPTH = 64
"""Elements inside each other; real descriptors have up to 9."""
MAX_ELEMENTS = 10_000
"""Elements of one descriptor; real ones have up to 3,244 (a vCenter with 13 deployment sizes)."""
MAX_ATTRIBUTES = 50_000
"""Attributes and namespace declarations of one descriptor; real ones have up to 900. Each new name costs memory."""
MAX_TAG_ATTRIBUTES = 4096
"""The same for one tag, which the parser takes in whole before it hands out the first."""
MAX_FINDINGS = 100
"""Findings about one descriptor; with more, it is wrong as a whole."""
MAX_CAPACITY = 1 << 63
"""Bytes; a larger capacity is taken as unknown. The disk's own header decides its size anyway."""
FED_AT_ONCE = 64 << 10
"""Bytes handed to the parser before the limits are looked at again."""

OVF_NAMESPACES = frozenset(
    {
        "http://www.vmware.com/schema/ovf/1/envelope",
        "http://schemas.dmtf.org/ovf/envelope/1",
        "http://schemas.dmtf.org/ovf/envelope/2",
    }
)
"""Without the slash that oVirt puts at the end."""
XML_ENCRYPTION = "http://www.w3.org/2001/04/xmlenc#"
XML_SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
KNOWN_ENCODING = re.compile(r"utf-8|utf-16(?:le|be)?|us-ascii|iso-8859-\d{1,2}|windows-125\d", re.IGNORECASE)

RESOURCE_DISK = 17
"""CIM ResourceType of a hard disk."""

CHUNK_DIGITS = 9
"""A file with a chunkSize is stored as `href.000000000`, `href.000000001`, ..."""


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
        finder = _DiskFinder(self)
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
            has_address = _is_number(address)
            return item.section, inactive, controller, not has_address, int(address) if has_address else 0

        return sorted(system.items, key=rank)


_HOST_RESOURCE = re.compile(r"(?:ovf:)?/{1,2}(?P<kind>disk|file)/(?P<id>.+)", re.DOTALL)
_DISK_SUFFIXES = (".vmdk", ".vhd", ".vhdx", ".vdi", ".qcow2", ".qcow", ".raw", ".img")


class _DiskFinder:
    """From the HostResource of a hardware item to the disk it means."""

    def __init__(self, descriptor: OvfDescriptor) -> None:
        self._by_id = {disk.disk_id: disk for disk in reversed(descriptor.disks)}
        self._by_file_ref = {disk.file_ref: disk for disk in reversed(descriptor.disks) if disk.file_ref}
        self._files = {file.id: file for file in descriptor.files}

    def find(self, item: HardwareItem) -> OvfDisk | None:
        """Return the disk, or None for any other device and for a reference to nothing."""
        text = item.host_resource
        match = _HOST_RESOURCE.fullmatch(text)
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


def parse_descriptor(data: bytes, name: str) -> OvfDescriptor:
    """Parse a descriptor; `name` is for messages.

    Raises CorruptImage for text that is not well-formed, is no OVF envelope, exceeds a limit above, or has two files
    or disks of one id; UnsupportedFeature for an encrypted descriptor and for one with a document type.
    """
    if len(data) > MAX_DESCRIPTOR_SIZE:
        raise CorruptImage(f"{name}: the descriptor has {len(data)} bytes, at most {MAX_DESCRIPTOR_SIZE} are read")
    reader = _Reader(name)
    _parse(data, reader, name)
    return reader.descriptor()


def _parse(data: bytes, reader: "_Reader", name: str) -> None:
    """Feed the parser piece by piece, so that a limit stops it before it has taken in the rest."""
    parser = DefusedXMLParser(target=reader, forbid_dtd=True)
    # The parser inside tells which encoding is asked for, and how much of what was fed is still an unfinished tag.
    expat = parser.parser
    expat.XmlDeclHandler = reader.xml_declaration
    try:
        for start in range(0, len(data), FED_AT_ONCE):
            end = start + FED_AT_ONCE
            parser.feed(data[start:end])
            _check_unfinished_tag(data[max(expat.CurrentByteIndex, 0) : end], name)
        parser.close()
    except ParseError as error:
        raise CorruptImage(f"{name}: the descriptor is not well-formed XML: {printable(str(error))}") from error
    except DefusedXmlException as error:
        raise UnsupportedFeature(
            f"{name}: the descriptor declares a document type or entities; no OVF needs them, and they could pull in "
            "other files"
        ) from error
    except (LookupError, ValueError) as error:
        # What the XML parser raises for an encoding that it cannot work with.
        raise CorruptImage(f"{name}: the descriptor cannot be decoded: {printable(str(error))}") from error


def _check_unfinished_tag(text: bytes, name: str) -> None:
    # Comments are held back whole as well. In UTF-16 every other byte is a zero.
    is_tag = not text[:8].replace(b"\0", b"").startswith(b"<!")
    if is_tag and text.count(b"=") > MAX_TAG_ATTRIBUTES:
        raise CorruptImage(f"{name}: a tag of the descriptor has over {MAX_TAG_ATTRIBUTES} attributes")


Kind = Literal[
    "Envelope",
    "References",
    "File",
    "DiskSection",
    "Disk",
    "DeploymentOptionSection",
    "Configuration",
    "VirtualSystem",
    "VirtualHardwareSection",
    "Item",
    "",
]
"""What an element is; empty for those that are passed over."""

_INSIDE: Mapping[tuple[Kind, str], Kind] = {
    ("References", "File"): "File",
    ("DiskSection", "Disk"): "Disk",
    ("DeploymentOptionSection", "Configuration"): "Configuration",
    ("VirtualSystem", "VirtualHardwareSection"): "VirtualHardwareSection",
    ("VirtualHardwareSection", "Item"): "Item",
    ("VirtualHardwareSection", "StorageItem"): "Item",
    ("VirtualHardwareSection", "EthernetPortItem"): "Item",
}
_ANYWHERE: Mapping[str, Kind] = {
    "References": "References",
    "DiskSection": "DiskSection",
    "DeploymentOptionSection": "DeploymentOptionSection",
    "VirtualSystem": "VirtualSystem",
}
_ITEM_TEXTS = frozenset(
    {
        "instanceid", "resourcetype", "resourcesubtype", "parent", "addressonparent", "hostresource",
        "automaticallocation",
    }
)  # fmt: skip


class _Reader:
    """The target of the parser: keeps what the descriptor is made of, and counts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: list[Kind] = []
        self._elements = 0
        self._attributes = 0
        self._namespaces = OVF_NAMESPACES
        self._findings: list[Finding] = []
        self._files: dict[str, OvfFile] = {}
        self._disks: dict[str, OvfDisk] = {}
        self._systems: list[VirtualSystem] = []
        self._configurations: list[str] = []
        self._default: str | None = None
        self._system: _System | None = None
        self._item: dict[str, str] = {}
        self._text: list[str] | None = None

    def xml_declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and not KNOWN_ENCODING.fullmatch(encoding):
            raise UnsupportedFeature(
                f"{self._name}: the descriptor's encoding {printable(encoding, 40)!r} is not read; UTF-8 is what "
                "every OVF should have"
            )

    def start_ns(self, _prefix: str, _uri: str) -> None:
        self._count_attributes(1)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise CorruptImage(f"{self._name}: the descriptor has over {MAX_ELEMENTS} elements")
        if len(self._kinds) == MAX_DEPTH:
            raise CorruptImage(f"{self._name}: the descriptor's elements lie over {MAX_DEPTH} deep in each other")
        self._count_attributes(len(attributes))
        namespace, local = _split(tag)
        if namespace == XML_ENCRYPTION:
            raise UnsupportedFeature(f"{self._name}: the descriptor is encrypted (XML Encryption); decrypt it first")
        kind = self._kind(local, namespace, attributes)
        if kind == "File":
            self._add_file(attributes)
        elif kind == "Disk":
            self._add_disk(attributes)
        elif kind == "Configuration":
            self._add_configuration(attributes)
        elif kind == "VirtualSystem":
            self._system = _System(self._attribute(attributes, "id") or "")
        elif kind == "VirtualHardwareSection" and self._system is not None:
            self._system.sections += 1
        elif kind == "Item":
            self._item = {"configuration": self._attribute(attributes, "configuration") or ""}
        elif self._is_kept_text(local):
            self._text = []
        self._kinds.append(kind)

    def data(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def end(self, tag: str) -> None:
        kind = self._kinds.pop()
        if self._text is not None and self._is_kept_text(_split(tag)[1]):
            self._keep(_split(tag)[1], "".join(self._text).strip())
            self._text = None
        if kind == "Item":
            self._end_item()
        elif kind == "VirtualSystem":
            self._end_system()

    def close(self) -> None:
        pass

    def descriptor(self) -> OvfDescriptor:
        """Return what was read, after the end of the document."""
        default = self._default or (self._configurations[0] if self._configurations else None)
        descriptor = OvfDescriptor(
            files=tuple(self._files.values()),
            disks=tuple(self._disks.values()),
            systems=tuple(self._systems),
            configurations=tuple(self._configurations),
            default_configuration=default,
        )
        self._cross_check(descriptor)
        return replace(descriptor, findings=tuple(self._findings))

    def _count_attributes(self, count: int) -> None:
        self._attributes += count
        if self._attributes > MAX_ATTRIBUTES:
            raise CorruptImage(f"{self._name}: the descriptor has over {MAX_ATTRIBUTES} attributes")

    def _kind(self, local: str, namespace: str, attributes: Mapping[str, str]) -> Kind:
        if not self._kinds:
            self._begin_envelope(local, namespace)
            return "Envelope"
        if local in {"Section", "Content"}:
            # OVF 0.9 and oVirt name the section in xsi:type.
            typed = attributes.get(f"{{{XML_SCHEMA_INSTANCE}}}type", "")
            local = typed.rpartition(":")[2].removesuffix("_Type")
        return _INSIDE.get((self._kinds[-1], local)) or _ANYWHERE.get(local, "")

    def _begin_envelope(self, local: str, namespace: str) -> None:
        if local != "Envelope":
            raise CorruptImage(
                f"{self._name}: the root element is {printable(local, 40)!r}, expected 'Envelope': this is no OVF"
            )
        self._namespaces = OVF_NAMESPACES | {namespace.removesuffix("/")}
        if namespace.removesuffix("/") not in OVF_NAMESPACES:
            self._note(
                "ovf-namespace",
                Severity.WARNING,
                f"the envelope's namespace is {printable(namespace, 80)!r}, which no version of OVF has",
            )

    def _attribute(self, attributes: Mapping[str, str], local: str) -> str | None:
        """Return an attribute by its local name: in an OVF namespace, else in none."""
        for key, value in attributes.items():
            namespace, name = _split(key)
            if name == local and namespace and namespace.removesuffix("/") in self._namespaces:
                return value
        return attributes.get(local)

    def _is_kept_text(self, local: str) -> bool:
        """Tell whether an element right below the innermost one holds text that is kept."""
        if not self._kinds:
            return False
        if self._kinds[-1] == "Item":
            return local.lower() in _ITEM_TEXTS
        return self._kinds[-1] == "VirtualSystem" and local == "Name"

    def _keep(self, local: str, text: str) -> None:
        if self._kinds[-1] == "Item":
            # oVirt spells it InstanceId; of several, the first that says something counts.
            key = local.lower()
            if not self._item.get(key):
                self._item[key] = text
        elif self._system is not None and not self._system.name:
            self._system.name = text

    def _end_item(self) -> None:
        if self._system is None:
            return
        item, self._item = self._item, {}
        resource_type = item.get("resourcetype", "")
        self._system.items.append(
            HardwareItem(
                section=self._system.sections - 1,
                instance_id=item.get("instanceid", ""),
                resource_type=int(resource_type) if _is_number(resource_type) else None,
                resource_sub_type=item.get("resourcesubtype", ""),
                parent=item.get("parent", ""),
                address_on_parent=item.get("addressonparent", ""),
                host_resource=item.get("hostresource", ""),
                automatic_allocation=item.get("automaticallocation", "").lower(),
                configurations=tuple(item.get("configuration", "").split()),
            )
        )

    def _end_system(self) -> None:
        if self._system is not None:
            self._systems.append(VirtualSystem(self._system.id, self._system.name, tuple(self._system.items)))
        self._system = None

    def _add_configuration(self, attributes: Mapping[str, str]) -> None:
        identifier = self._attribute(attributes, "id") or ""
        self._configurations.append(identifier)
        if self._default is None and (self._attribute(attributes, "default") or "").strip() in {"true", "1"}:
            self._default = identifier

    def _add_file(self, attributes: Mapping[str, str]) -> None:
        identifier = self._attribute(attributes, "id") or ""
        href = self._attribute(attributes, "href") or ""
        if identifier in self._files:
            raise CorruptImage(
                f"{self._name}: two files of the References section have the id {printable(identifier, 80)!r}: which "
                "of them a disk means cannot be told"
            )
        if not href:
            self._note("ovf-file", Severity.ERROR, f"file {printable(identifier, 80)!r} has no href")
        self._files[identifier] = OvfFile(
            id=identifier,
            href=href,
            size=self._whole_number(attributes, "size", identifier),
            compression=(self._attribute(attributes, "compression") or "").strip().lower(),
            chunk_size=self._whole_number(attributes, "chunkSize", identifier) or None,
        )

    def _whole_number(self, attributes: Mapping[str, str], local: str, identifier: str) -> int | None:
        text = (self._attribute(attributes, local) or "").strip()
        if not text or _is_number(text):
            return int(text) if text else None
        self._note(
            "ovf-file",
            Severity.WARNING,
            f"file {printable(identifier, 80)!r}: its {local} {printable(text, 40)!r} is not a whole number",
        )
        return None

    def _add_disk(self, attributes: Mapping[str, str]) -> None:
        disk_id = self._attribute(attributes, "diskId") or ""
        shown = printable(disk_id, 80)
        if disk_id in self._disks:
            raise CorruptImage(
                f"{self._name}: two disks of the DiskSection have the diskId {shown!r}: which of them a machine means "
                "cannot be told"
            )
        text = (self._attribute(attributes, "capacity") or "").strip()
        units = self._attribute(attributes, "capacityAllocationUnits")
        if not text and (gigabytes := (self._attribute(attributes, "size") or "").strip()):
            # oVirt writes the capacity as `size`, in gigabytes.
            text, units = gigabytes, "byte * 2^30"
        capacity = _capacity(text, units)
        if capacity is None and not text.startswith("${"):
            self._note(
                "ovf-capacity",
                Severity.WARNING,
                f"disk {shown!r}: its capacity {printable(text, 40)!r} in units of {printable(units or 'byte', 40)!r} "
                "is not understood",
            )
        self._disks[disk_id] = OvfDisk(
            disk_id=disk_id,
            file_ref=self._attribute(attributes, "fileRef") or None,
            capacity=capacity,
            capacity_text=text,
            format_uri=self._attribute(attributes, "format") or "",
            parent_ref=self._attribute(attributes, "parentRef") or "",
        )

    def _cross_check(self, descriptor: OvfDescriptor) -> None:
        finder = _DiskFinder(descriptor)
        for system in descriptor.systems:
            for item in system.items:
                match = _HOST_RESOURCE.fullmatch(item.host_resource)
                if match and match["kind"] == "disk" and finder.find(item) is None:
                    self._note(
                        "ovf-disk-missing",
                        Severity.WARNING,
                        f"a machine has the disk {printable(match['id'], 80)!r}, which the DiskSection does not list",
                    )
        by_href: dict[str, OvfFile] = {}
        for file in descriptor.files:
            if by_href.setdefault(file.href, file) is not file:
                self._note(
                    "ovf-href-twice",
                    Severity.WARNING,
                    f"the files {printable(by_href[file.href].id, 80)!r} and {printable(file.id, 80)!r} have one href, "
                    f"{printable(file.href, 80)!r}",
                )
        for disk in descriptor.disks:
            if disk.file_ref is not None and descriptor.file_of(disk) is None:
                self._note(
                    "ovf-file-missing",
                    Severity.ERROR,
                    f"disk {printable(disk.disk_id, 80)!r} has the file {printable(disk.file_ref, 80)!r}, which the "
                    "References section does not list",
                )
        for disk in descriptor.shared_files():
            # Deployments of different sizes share their files on purpose.
            severity = Severity.INFO if descriptor.configurations else Severity.WARNING
            self._note(
                "ovf-file-shared",
                severity,
                f"disk {printable(disk.disk_id, 80)!r} has the same file as a disk before it, and is not shown again",
            )

    def _note(self, rule: str, severity: Severity, message: str) -> None:
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(Finding(rule, severity, f"{self._name}: {message}"))


@dataclass(slots=True)
class _System:
    """A virtual system that is being read."""

    id: str
    name: str = ""
    sections: int = 0
    items: list[HardwareItem] = field(default_factory=list)


def _split(tag: str) -> tuple[str, str]:
    """Return namespace and local name of `{namespace}local`."""
    namespace, _, local = tag.rpartition("}")
    return namespace[1:], local


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20


_UNITS = re.compile(r"bytes?(?P<factors>(?:\*\d{1,13}(?:\^\d{1,2})?)*)")
_WORDS: Mapping[str, int] = {
    word: 1 << (10 * power)
    for power, words in enumerate(
        (
            ("kb", "kib", "kilobyte", "kilobytes"),
            ("mb", "mib", "megabyte", "megabytes"),
            ("gb", "gib", "gigabyte", "gigabytes"),
            ("tb", "tib", "terabyte", "terabytes"),
        ),
        start=1,
    )
    for word in words
}


def unit_size(text: str | None) -> int | None:
    """Return the bytes that one unit of `capacityAllocationUnits` stands for, or None if it is not understood.

    `byte`, `byte * 2^20`, `byte*1024*1024`; words such as `MegaBytes` are powers of two, as their writers mean them.
    """
    if text is None:
        return 1
    compact = "".join(text.split()).lower()
    match = _UNITS.fullmatch(compact)
    if match is None:
        return _WORDS.get(compact)
    size = 1
    for factor in match["factors"].split("*")[1:]:
        base, _, exponent = factor.partition("^")
        size *= int(base) ** int(exponent or 1)
        if not 0 < size <= MAX_CAPACITY:
            return None
    return size


def _capacity(text: str, units: str | None) -> int | None:
    unit = unit_size(units)
    if unit is None or not _is_number(text) or not 0 < int(text) * unit <= MAX_CAPACITY:
        return None
    return int(text) * unit


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def resolve_href(href: str, names: Container[str], descriptor_name: str = "", *, where: str = "") -> str:
    """Return the name under which the file of an `href` lies in the appliance.

    Tried in turn: the text as it is, then percent-decoded; each relative to the descriptor's folder, then to the
    appliance's top. `where` names the descriptor in messages. Raises UnsafeReference for URLs and for paths that lead
    out, CorruptImage if there is no such file, UnsupportedFeature if there are only numbered pieces of it.
    """
    shown = printable(href)
    where = where or printable(descriptor_name)
    if _URL.match(href):
        raise UnsafeReference(f"{where}: the href {shown!r} is a URL; only files of the appliance are opened")
    folder = descriptor_name.rpartition("/")[0]
    candidates: dict[str, None] = {}
    for text in (href, unquote(href, errors="surrogateescape")):
        path = normalised_path(text)
        problem = path_problem(text) or path_problem(path)
        if problem is not None:
            raise UnsafeReference(f"{where}: the href {shown!r} may not be used: {problem}")
        candidates.update(dict.fromkeys((f"{folder}/{path}" if folder else path, path)))
    for candidate in candidates:
        if candidate in names:
            return candidate
    for candidate in candidates:
        if chunk_name(candidate, 0) in names:
            raise UnsupportedFeature(
                f"{where}: the file {shown!r} is not in the appliance, but "
                f"{printable(chunk_name(candidate, 0))!r} is, and no chunkSize says how they belong together: it may "
                "be a snapshot"
            )
    raise CorruptImage(f"{where}: the descriptor refers to the file {shown!r}, which is not in the appliance")


def chunk_name(name: str, number: int) -> str:
    """Return the name of one chunk of a file that is stored in chunks."""
    return f"{name}.{number:0{CHUNK_DIGITS}}"
