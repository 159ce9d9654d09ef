"""The OVF descriptor: which files an appliance has, which of them are disks, and in which order a machine has them.

Variants: OVF 0.9 (VMware's draft), 1.x, 2.x, and the dialect of oVirt.
Specification: DMTF DSP0243 1.1.1 and 2.1.1, Open Virtualization Format. Sizes in bytes.

The text is parsed as a stream and only what is named here is kept: no tree is built, no entity expanded, nothing
else opened.
"""

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from diskfs_formats.errors import CorruptImage, UnsupportedFeature
from diskfs_formats.ovf_model import RESOURCE_DISK, HardwareItem, OvfDescriptor, OvfDisk, OvfFile, VirtualSystem
from diskfs_formats.ovf_reading import MAX_ATTRIBUTES, MAX_DEPTH, MAX_ELEMENTS, DescriptorReader
from diskfs_formats.ovf_references import chunk_name, resolve_href
from diskfs_formats.ovf_units import unit_size
from diskfs_formats.text import printable

__all__ = (
    "MAX_ATTRIBUTES",
    "MAX_DEPTH",
    "MAX_DESCRIPTOR_SIZE",
    "MAX_ELEMENTS",
    "RESOURCE_DISK",
    "HardwareItem",
    "OvfDescriptor",
    "OvfDisk",
    "OvfFile",
    "VirtualSystem",
    "chunk_name",
    "parse_descriptor",
    "resolve_href",
    "unit_size",
)

MAX_DESCRIPTOR_SIZE = 4 << 20
"""Bytes. The largest of 791 real descriptors has 4,094,918, nearly all of it one annotation; the next 1.7 million."""
MAX_TAG_ATTRIBUTES = 4096
"""The same for one tag, which the parser takes in whole before it hands out the first."""
FED_AT_ONCE = 64 << 10
"""Bytes handed to the parser before the limits are looked at again."""


def parse_descriptor(data: bytes, name: str) -> OvfDescriptor:
    """Parse a descriptor; `name` is for messages.

    Raises CorruptImage for text that is not well-formed, is no OVF envelope, exceeds a limit above, or has two files
    or disks of one id; UnsupportedFeature for an encrypted descriptor and for one with a document type.
    """
    if len(data) > MAX_DESCRIPTOR_SIZE:
        raise CorruptImage(f"{name}: the descriptor has {len(data)} bytes, at most {MAX_DESCRIPTOR_SIZE} are read")
    reader = DescriptorReader(name)
    _parse(data, reader, name)
    return reader.descriptor()


def _parse(data: bytes, reader: "DescriptorReader", name: str) -> None:
    """Feed the parser piece by piece, so that a limit stops it before it has taken in the rest."""
    parser = DefusedXMLParser(target=reader, forbid_dtd=True)
    # The parser inside tells which encoding is asked for, and how much of what was fed is still an unfinished tag.
    expat = parser.parser
    expat.XmlDeclHandler = reader.xml_declaration
    begun = 0
    try:
        for start in range(0, len(data), FED_AT_ONCE):
            end = start + FED_AT_ONCE
            parser.feed(data[start:end])
            # Below 0 where the parser waits for more of what it has begun: expat 2.6, and 2.5 as Debian mended it.
            begun = expat.CurrentByteIndex if expat.CurrentByteIndex >= 0 else begun
            _check_unfinished_tag(data[begun:end], name)
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
