"""What is kept of an OVF descriptor while its text is parsed, and the limits of what is taken in.

Variants: OVF 0.9 (VMware's draft), 1.x, 2.x, and the dialect of oVirt. Elements and attributes are matched by their
local names, because producers differ in prefixes and namespaces.
Specification: DMTF DSP0243 1.1.1 and 2.1.1, Open Virtualization Format. Sizes in bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from diskfs_formats.errors import CorruptImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.ovf_model import (
    HOST_RESOURCE,
    DiskFinder,
    HardwareItem,
    OvfDescriptor,
    OvfDisk,
    OvfFile,
    VirtualSystem,
)
from diskfs_formats.ovf_units import capacity_in_bytes, is_number
from diskfs_formats.text import printable

MAX_DEPTH = 64
"""Elements inside each other; real descriptors have up to 9."""
MAX_ELEMENTS = 10_000
"""Elements of one descriptor; real ones have up to 3,244 (a vCenter with 13 deployment sizes)."""
MAX_ATTRIBUTES = 50_000
"""Attributes and namespace declarations of one descriptor; real ones have up to 900. Each new name costs memory."""
MAX_FINDINGS = 100
"""Findings about one descriptor; with more, it is wrong as a whole."""

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


class DescriptorReader:
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
                resource_type=int(resource_type) if is_number(resource_type) else None,
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
        if not text or is_number(text):
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
        capacity = capacity_in_bytes(text, units)
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
        finder = DiskFinder(descriptor)
        for system in descriptor.systems:
            for item in system.items:
                match = HOST_RESOURCE.fullmatch(item.host_resource)
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
