"""Writing OVF descriptors: one made for disks alone, or that of an appliance corrected for disks written anew.

Specification: DMTF DSP0243 1.1.1, Open Virtualization Format. Sizes in bytes. Capacities are written in bytes, too:
VirtualBox takes no notice of their units, so that this is the one form that every reader gets right.
"""

import re
import xml.parsers.expat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr, unescape

from diskfs_formats.errors import CorruptImage, UnsupportedFeature
from diskfs_formats.ovf import OvfDescriptor, OvfFile, parse_descriptor

STREAM_OPTIMIZED_URI = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_CONTROLLER_ADDRESS = 7
"""The address on a SCSI bus that the controller itself has."""
_DISKS_PER_CONTROLLER = 15
_MEMORY_MB = 2048
_OTHER_64_BIT = 102
"""CIM_OperatingSystem.OSType "Other 64-Bit": nothing is known of what runs from the disks."""

_ENVELOPE = """\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
    xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
{files}
  </References>
  <DiskSection>
    <Info>Virtual disks</Info>
{disks}
  </DiskSection>
  <VirtualSystem ovf:id={name_attribute}>
    <Info>A virtual machine</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="{os_type}" vmw:osType="otherGuest64">
      <Info>The operating system is not known</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
      </System>
{items}
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


@dataclass(frozen=True, slots=True)
class WrittenDisk:
    """A stream-optimized disk of the appliance: its file, what the file takes, and what the disk has."""

    file_name: str
    file_size: int
    capacity: int
    populated_size: int


def made_descriptor(disks: Sequence[WrittenDisk], name: str) -> bytes:
    """Return a descriptor of a virtual machine `name` of which nothing is known but its disks."""
    files = [
        f'    <File ovf:id="file{number}" ovf:href={quoteattr(disk.file_name)} ovf:size="{disk.file_size}"/>'
        for number, disk in enumerate(disks, 1)
    ]
    described = [
        f'    <Disk ovf:capacity="{disk.capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk{number}" '
        f'ovf:fileRef="file{number}" ovf:format="{STREAM_OPTIMIZED_URI}" ovf:populatedSize="{disk.populated_size}"/>'
        for number, disk in enumerate(disks, 1)
    ]
    text = _ENVELOPE.format(
        files="\n".join(files),
        disks="\n".join(described),
        name=escape(name),
        name_attribute=quoteattr(name),
        os_type=_OTHER_64_BIT,
        items="\n".join(_hardware(len(disks))),
    )
    return text.encode()


def _hardware(disks: int) -> Iterator[str]:
    """Yield the items: a processor, memory, SCSI controllers, and the disks on them. Children in the schema's order."""
    yield _item(
        Description="Number of virtual CPUs", ElementName="1 virtual CPU", InstanceID="1", ResourceType="3",
        VirtualQuantity="1",
    )  # fmt: skip
    yield _item(
        AllocationUnits="byte * 2^20", Description="Memory Size", ElementName=f"{_MEMORY_MB} MB of memory",
        InstanceID="2", ResourceType="4", VirtualQuantity=str(_MEMORY_MB),
    )  # fmt: skip
    controllers = -(-disks // _DISKS_PER_CONTROLLER)
    first = 3
    for controller in range(controllers):
        yield _item(
            Address=str(controller), Description="SCSI Controller", ElementName=f"SCSI controller {controller}",
            InstanceID=str(first + controller), ResourceSubType="lsilogic", ResourceType="6",
        )  # fmt: skip
    for number in range(disks):
        controller, address = divmod(number, _DISKS_PER_CONTROLLER)
        yield _item(
            AddressOnParent=str(address + (address >= _CONTROLLER_ADDRESS)), ElementName=f"Hard disk {number + 1}",
            HostResource=f"ovf:/disk/vmdisk{number + 1}", InstanceID=str(first + controllers + number),
            Parent=str(first + controller), ResourceType="17",
        )  # fmt: skip


def _item(**values: str) -> str:
    lines = [f"        <rasd:{key}>{escape(value)}</rasd:{key}>" for key, value in values.items()]
    return "\n".join(("      <Item>", *lines, "      </Item>"))


def corrected_descriptor(data: bytes, disks: Mapping[OvfFile, WrittenDisk], name: str) -> bytes:
    """Return an appliance's descriptor, in UTF-8, corrected for the disks whose files were written anew; all else stays
    as it is, byte by byte.

    `disks` has the files by what the descriptor says of them now; `name` is for messages. The descriptor was parsed
    before. Raises CorruptImage or UnsupportedFeature if the result would not say what it should.
    """
    text = _as_utf8(data, name)
    before = parse_descriptor(text, name)
    by_id = {file.id: disk for file, disk in disks.items()}
    by_reference = {
        disk.file_ref: by_id[file.id]
        for disk in before.disks
        if disk.file_ref is not None and (file := before.file_of(disk)) is not None and file.id in by_id
    }
    parts: list[bytes] = []
    done = 0
    for start, element in _elements(text, name):
        tag = _Tag.at(text, start, name)
        if element == "File" and (disk := by_id.get(tag.value("id"))) is not None:
            changed = tag.changed({"href": disk.file_name, "size": str(disk.file_size)}, ("compression", "chunkSize"))
        elif element == "Disk" and (disk := by_reference.get(tag.value("fileRef"))) is not None:
            changed = tag.changed(_disk_attributes(disk), ("parentRef",))
        else:
            continue
        parts += (text[done:start], changed)
        done = tag.end
    corrected = b"".join((*parts, text[done:]))
    _require_corrected(parse_descriptor(corrected, name), disks.values(), name)
    return corrected


def _disk_attributes(disk: WrittenDisk) -> dict[str, str]:
    return {
        "capacity": str(disk.capacity),
        "capacityAllocationUnits": "byte",
        "format": STREAM_OPTIMIZED_URI,
        "populatedSize": str(disk.populated_size),
    }


def _require_corrected(after: OvfDescriptor, disks: Iterable[WrittenDisk], name: str) -> None:
    found = {(file.href, file.size, disk.capacity) for disk in after.disks if (file := after.file_of(disk)) is not None}
    for disk in disks:
        if (disk.file_name, disk.file_size, disk.capacity) not in found:
            raise UnsupportedFeature(
                f"{name}: the descriptor cannot be corrected for {disk.file_name!r}; convert with --disk, which makes "
                "a new one"
            )


_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")
_ENCODING = re.compile(rb"""\A\s*<\?xml[^>]*?\bencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def _as_utf8(data: bytes, name: str) -> bytes:
    """Return the text of a descriptor in UTF-8, its declaration saying so."""
    encoding = "utf-8-sig"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif match := _ENCODING.match(data):
        encoding = match[1].decode("ascii")
        if encoding.lower() in ("utf-8", "us-ascii"):
            return data
    try:
        text = data.decode(encoding)
    except (LookupError, UnicodeError) as error:
        raise CorruptImage(f"{name}: the descriptor cannot be decoded from {encoding}") from error
    return _DECLARATION.sub('<?xml version="1.0" encoding="UTF-8"?>', text, count=1).encode()


def _elements(text: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yield where the tags of files and disks begin, in order."""
    parser = xml.parsers.expat.ParserCreate()
    found: list[tuple[int, str]] = []
    path: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        local = tag.rpartition(":")[2]
        # The sections of OVF 0.9 say by an attribute what they are.
        kind = next((value for key, value in attributes.items() if key.endswith(":type")), "")
        parent = path[-1] if path else ""
        if (local == "File" and parent == "References") or (local == "Disk" and "DiskSection" in parent):
            found.append((parser.CurrentByteIndex, local))
        path.append(kind if local == "Section" else local)

    def end(_tag: str) -> None:
        path.pop()

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    try:
        parser.Parse(text, True)
    except xml.parsers.expat.ExpatError as error:
        raise CorruptImage(f"{name}: the descriptor is not well-formed XML: {error}") from error
    yield from found


_TAG = re.compile(rb"""<[^\s/>]+(?P<attributes>(?:\s+[^\s=/>]+\s*=\s*(?:"[^"]*"|'[^']*'))*)\s*/?>""")
_ATTRIBUTE = re.compile(rb"""\s+(?P<key>[^\s=/>]+)\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)')""")


@dataclass(frozen=True, slots=True)
class _Tag:
    """A start tag as it is written."""

    text: bytes
    end: int
    attributes: tuple[tuple[str, str, bytes], ...]
    """Local name, value, and the whole as it is written, of each attribute."""

    @classmethod
    def at(cls, text: bytes, start: int, name: str) -> "_Tag":
        match = _TAG.match(text, start)
        if match is None:
            raise UnsupportedFeature(f"{name}: byte {start} of the descriptor begins a tag that cannot be corrected")
        attributes = tuple(
            (
                one["key"].decode().rpartition(":")[2],
                unescape((one["double"] or one["single"] or b"").decode(), {"&quot;": '"', "&apos;": "'"}),
                one[0],
            )
            for one in _ATTRIBUTE.finditer(match["attributes"])
        )
        return cls(match[0], match.end(), attributes)

    def value(self, local: str) -> str:
        """Return an attribute's value; empty if there is none."""
        return next((value for key, value, _ in self.attributes if key == local), "")

    def changed(self, values: Mapping[str, str], without: Sequence[str]) -> bytes:
        """Return the tag with some attributes set, and some left out; new ones get the prefix of the others."""
        first = self.attributes[0][2].split(b"=", 1)[0].strip()
        prefix = first.rpartition(b":")[0]
        left = dict(values)
        parts: list[bytes] = []
        for key, _, written in self.attributes:
            if key in without:
                continue
            if key in left:
                parts.append(written.split(b"=", 1)[0] + b"=" + quoteattr(left.pop(key)).encode())
            else:
                parts.append(written)
        for key, value in left.items():
            qualified = prefix + b":" + key.encode() if prefix else key.encode()
            parts.append(b" " + qualified + b"=" + quoteattr(value).encode())
        head = self.text[: self.text.index(self.attributes[0][2])]
        return head + b"".join(parts) + (b"/>" if self.text.endswith(b"/>") else b">")
