"""What a VHDX file consists of, as the specification declares it.

Specification: [MS-VHDX] 8.0, sections 2.1 to 2.6. Tables whose entry count comes from the file are unpacked with
`struct` from a bounded piece of the file; the entry's layout is here.
"""

import struct
from uuid import UUID

from construct import Bytes, Const, Int16ul, Int32ul, Int64ul, Padding, Struct

KIB = 1 << 10
MIB = 1 << 20
TIB = 1 << 40

SIGNATURE = b"vhdxfile"
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)
HEADER_SECTION_SIZE = MIB
"""The file identifier, both headers and both region tables; everything else lies after it."""

FILE_IDENTIFIER = Struct(
    "Signature" / Const(SIGNATURE),
    "Creator" / Bytes(512),  # UTF-16, need not be terminated
)
assert FILE_IDENTIFIER.sizeof() == 520

HEADER = Struct(
    "Signature" / Const(b"head"),
    "Checksum" / Int32ul,
    "SequenceNumber" / Int64ul,
    "FileWriteGuid" / Bytes(16),
    "DataWriteGuid" / Bytes(16),
    "LogGuid" / Bytes(16),
    "LogVersion" / Int16ul,
    "Version" / Int16ul,
    "LogLength" / Int32ul,
    "LogOffset" / Int64ul,
    Padding(4016),
)
assert HEADER.sizeof() == 4 * KIB

REGION_TABLE_SIZE = 64 * KIB
REGION_TABLE_HEADER = Struct(
    "Signature" / Const(b"regi"),
    "Checksum" / Int32ul,  # of all 64 KiB
    "EntryCount" / Int32ul,
    "Reserved" / Int32ul,
)
assert REGION_TABLE_HEADER.sizeof() == 16
REGION_TABLE_ENTRY = struct.Struct("<16sQII")
"""Guid, FileOffset, Length, Required (bit 0)."""

LOG_SECTOR_SIZE = 4 * KIB
LOG_ENTRY_SIGNATURE = b"loge"
LOG_ENTRY_HEADER = Struct(
    "Signature" / Const(LOG_ENTRY_SIGNATURE),
    "Checksum" / Int32ul,  # of EntryLength bytes
    "EntryLength" / Int32ul,
    "Tail" / Int32ul,  # in bytes from the beginning of the log
    "SequenceNumber" / Int64ul,
    "DescriptorCount" / Int32ul,
    "Reserved" / Int32ul,
    "LogGuid" / Bytes(16),
    "FlushedFileOffset" / Int64ul,
    "LastFileOffset" / Int64ul,
)
assert LOG_ENTRY_HEADER.sizeof() == 64
LOG_DESCRIPTOR = struct.Struct("<4s4s8sQQ")
"""Zero descriptor: ZeroSignature, Reserved, ZeroLength, FileOffset, SequenceNumber.
Data descriptor: DataSignature, TrailingBytes, LeadingBytes, FileOffset, SequenceNumber."""
ZERO_SIGNATURE = b"zero"
DATA_SIGNATURE = b"desc"
LOG_DATA_SECTOR = struct.Struct("<4sI4084sI")
"""DataSignature, SequenceHigh, Data, SequenceLow."""
assert LOG_DATA_SECTOR.size == LOG_SECTOR_SIZE
DATA_SECTOR_SIGNATURE = b"data"

METADATA_TABLE_SIZE = 64 * KIB
METADATA_TABLE_HEADER = Struct(
    "Signature" / Const(b"metadata"),
    "Reserved" / Int16ul,
    "EntryCount" / Int16ul,
    "Reserved2" / Bytes(20),
)
assert METADATA_TABLE_HEADER.sizeof() == 32
METADATA_TABLE_ENTRY = struct.Struct("<16sIIII")
"""ItemID, Offset from the beginning of the region, Length, flags, Reserved2."""
FLAG_IS_USER = 1 << 0
FLAG_IS_REQUIRED = 1 << 2
MAX_ENTRIES = 2047
"""Of a region table and of a metadata table: what fits 64 KiB."""

FILE_PARAMETERS = Struct("BlockSize" / Int32ul, "flags" / Int32ul)
assert FILE_PARAMETERS.sizeof() == 8
FLAG_LEAVE_BLOCK_ALLOCATED = 1 << 0
FLAG_HAS_PARENT = 1 << 1

PARENT_LOCATOR_HEADER = Struct(
    "LocatorType" / Bytes(16),
    "Reserved" / Int16ul,
    "KeyValueCount" / Int16ul,
)
assert PARENT_LOCATOR_HEADER.sizeof() == 20
PARENT_LOCATOR_ENTRY = struct.Struct("<IIHH")
"""KeyOffset, ValueOffset, KeyLength, ValueLength; offsets from the beginning of the item."""

BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS_ITEM = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE_ITEM = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID_ITEM = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE_ITEM = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE_ITEM = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR_ITEM = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
VHDX_LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
NO_GUID = UUID(int=0)


def guid(stored: bytes) -> UUID:
    """Return a GUID as it is written in text from its 16 stored bytes."""
    return UUID(bytes_le=stored)
