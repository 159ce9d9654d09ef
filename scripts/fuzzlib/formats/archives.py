"""Appliances in tar archives, and gzip files."""

import functools
import gzip
import hashlib
import io
import random
import struct
import tarfile
import zlib
from collections.abc import Iterator

from diskfs_formats.gzipped import MEMBER_HEADER, MEMBER_TRAILER
from diskfs_formats.tar import HEADER
from scripts.fuzzlib.formats import seeds
from scripts.fuzzlib.mutation import edited
from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure, Text, fields_of
from tests.samples.vmdk_builder import Layout, build, stamped

_BLOCK = 512
_END = bytes(1024)
_MAX_RECORDS = 40
_MAX_CORPUS = 100_000
_TYPES = b"0\x0012345679xgLKSVXM"

_DESCRIPTOR = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
<References>{files}</References>
<DiskSection><Info>disks</Info>{disks}</DiskSection>
<VirtualSystem ovf:id="vm"><Info>a machine</Info><Name>vm</Name>
<VirtualHardwareSection><Info>hardware</Info>
<Item><rasd:ElementName>SCSI</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>
<rasd:ResourceSubType>lsilogic</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>{items}
</VirtualHardwareSection></VirtualSystem></Envelope>
"""
_FILE = '<File ovf:id="f{number}" ovf:href="{href}" ovf:size="{size}"{more}/>'
_DISK = (
    '<Disk ovf:diskId="d{number}" ovf:fileRef="f{number}" ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^20" '
    'ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>'
)
_ITEM = (
    "<Item><rasd:AddressOnParent>{number}</rasd:AddressOnParent><rasd:ElementName>disk</rasd:ElementName>"
    "<rasd:HostResource>ovf:/disk/d{number}</rasd:HostResource><rasd:InstanceID>1{number}</rasd:InstanceID>"
    "<rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>"
)


def _appliance(members: dict[str, bytes], files: list[tuple[str, str]], kind: int) -> bytes:
    """Return an archive of a descriptor that lists `files`, (href, more attributes), its manifest, and the members."""
    numbered = list(enumerate(files))
    text = _DESCRIPTOR.format(
        files="".join(
            _FILE.format(number=number, href=href, size=len(members.get(href, b"")), more=more)
            for number, (href, more) in numbered
        ),
        disks="".join(_DISK.format(number=number) for number, _ in numbered),
        items="".join(_ITEM.format(number=number) for number, _ in numbered),
    ).encode()
    listed = {"vm.ovf": text, **members}
    sums = "".join(f"SHA256({name})= {hashlib.sha256(data).hexdigest()}\n" for name, data in listed.items()).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in {"vm.ovf": text, "vm.mf": sums, **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    # Without the padding to 10 KiB, in which nothing can be found.
    return buffer.getvalue()[:end] + _END


def _appliances() -> Iterator[Specimen]:
    disk = bytes(build(stamped(8 * 10), Layout(grain=8, entries=16, compressed=True, footer=True, version=3)))
    long = "n" * 120 + ".vmdk"
    zipped = gzip.compress(disk, mtime=0)
    chunks = {
        f"c.vmdk.{number:09d}": disk[number * 2048 : (number + 1) * 2048] for number in range(-(-len(disk) // 2048))
    }
    yield seeds.whole("ustar", _appliance({"d.vmdk": disk}, [("d.vmdk", "")], tarfile.USTAR_FORMAT))
    yield seeds.whole("pax", _appliance({long: disk}, [(long, "")], tarfile.PAX_FORMAT))
    yield seeds.whole("GNU", _appliance({long: disk, "x.nvram": b"n"}, [(long, "")], tarfile.GNU_FORMAT))
    yield seeds.whole("gzip", _appliance({"d.gz": zipped}, [("d.gz", ' ovf:compression="gzip"')], tarfile.USTAR_FORMAT))
    yield seeds.whole("chunks", _appliance(chunks, [("c.vmdk", ' ovf:chunkSize="2048"')], tarfile.USTAR_FORMAT))
    yield from seeds.corpus(lambda row: row.format == "tar/ova", max_size=_MAX_CORPUS)


def _headers(draft: Draft) -> list[int]:
    """Return where the archive's headers are, as far as they can be followed."""
    found: list[int] = []
    at = 0
    while at + _BLOCK <= draft.size and len(found) < _MAX_RECORDS:
        if not any(draft.read(at, _BLOCK)):
            break
        found.append(at)
        at += _BLOCK + -(-_size(draft.read(at + 124, 12)) // _BLOCK) * _BLOCK
    return found


def _size(field: bytes) -> int:
    text = field.split(b"\0")[0].strip()
    return int(text, 8) if text and not text.strip(b"01234567") else 0


def _tar_structure(draft: Draft) -> Structure:
    fields = []
    texts = []
    for at in _headers(draft):
        fields += [place for place in fields_of(HEADER, at) if place.offset < at + 345]
        texts += [Text(at, 100), Text(at + 124, 12), Text(at + 157, 100), Text(at + 345, 155)]
        size = _size(draft.read(at + 124, 12))
        if draft.read(at + 156, 1) in b"xgLK" or draft.read(at, 100).split(b"\0")[0].endswith((b".ovf", b".mf")):
            texts += [Text(at + _BLOCK, size)] * 6
    return Structure(tuple(fields), (), tuple(texts))


def _mend_tar(draft: Draft, _chance: random.Random) -> None:
    for at in _headers(draft):
        header = draft.read(at, _BLOCK)
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if _size(header[148:156]) != total:
            draft.write(at + 148, b"%06o\0 " % total)


def _reshape_tar(draft: Draft, chance: random.Random) -> None:
    """Move, double, drop or resize a member, or edit its text to another length."""
    headers = _headers(draft)
    if not headers or not draft.is_whole:
        return
    data = bytes(draft.pieces[0][1])
    end = headers[-1] + _BLOCK + -(-_size(data[headers[-1] + 124 : headers[-1] + 136]) // _BLOCK) * _BLOCK
    records = [data[start:stop] for start, stop in zip(headers, [*headers[1:], end], strict=True)]
    at, other = chance.randrange(len(records)), chance.randrange(len(records))
    match chance.randrange(6):
        case 0:
            records[at], records[other] = records[other], records[at]
        case 1:
            records.insert(other, records[at])
        case 2:
            del records[at]
        case 3:
            record = bytearray(records[at])
            record[156] = chance.choice(_TYPES)
            records[at] = bytes(record)
        case _:
            texts = [n for n, record in enumerate(records) if record[_BLOCK : _BLOCK + 40].isascii()] or [at]
            at = chance.choice(texts)
            records[at] = _resized(records[at], chance)
    draft.replace(b"".join(records) + data[end:])


def _resized(record: bytes, chance: random.Random) -> bytes:
    """Edit a record's data, and mostly say its new size in its header."""
    size = _size(record[124:136])
    body = edited(record[_BLOCK : _BLOCK + size], chance)
    head = bytearray(record[:_BLOCK])
    if chance.random() < 0.9:
        head[124:136] = b"%011o\0" % len(body)
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + body + bytes(-len(body) % _BLOCK)


OVA = Format("ova", "vm.ova", _appliances, _tar_structure, _mend_tar, _reshape_tar, changes=(1, 1, 1, 1, 2))

_EXTRA, _NAME, _COMMENT, _HEADER_CRC = 4, 8, 16, 2
_TRAILER = 8
_MAX_CONTENT = 1 << 20


def _member(content: bytes, flags: int = 0, level: int = 6) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    half = len(content) // 2
    packed = packer.compress(content[:half]) + packer.flush(zlib.Z_FULL_FLUSH) + packer.compress(content[half:])
    head = b"\x1f\x8b\x08" + bytes([flags]) + struct.pack("<IBB", 1_700_000_000, 2, 3)
    head += struct.pack("<H", 6) + b"ABCDEF" if flags & _EXTRA else b""
    head += b"disk.raw\0" if flags & _NAME else b""
    head += b"a comment\0" if flags & _COMMENT else b""
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF) if flags & _HEADER_CRC else b""
    return head + packed + packer.flush() + struct.pack("<II", zlib.crc32(content), len(content))


def _gzips() -> Iterator[Specimen]:
    content = stamped(40)
    everything = _EXTRA | _NAME | _COMMENT | _HEADER_CRC
    yield seeds.whole("plain", _member(content))
    yield seeds.whole("every field", _member(content, everything))
    yield seeds.whole("two members", _member(content, _NAME) + _member(content[:999], everything, level=1))
    yield seeds.whole("stored, padded", _member(content, level=0) + bytes(600))
    yield seeds.whole("long runs", _member(bytes(400_000), level=9))


def _gzip_structure(draft: Draft) -> Structure:
    fields = [*fields_of(MEMBER_HEADER, 0), Field(10, 2), *fields_of(MEMBER_TRAILER, draft.size - _TRAILER)]
    return Structure(tuple(fields), (), (Text(10, 40),))


def _mend_gzip(draft: Draft, _chance: random.Random) -> None:
    """The sum of the first header, and of each member's content as far as it can be inflated."""
    if not draft.is_whole:
        return
    data = bytearray(draft.pieces[0][1])
    at = 0
    while at + 18 <= len(data) and data[at : at + 2] == b"\x1f\x8b":
        flags, start = data[at + 3], at + 10
        if flags & _EXTRA:
            start += 2 + int.from_bytes(data[start : start + 2], "little")
        for flag in (_NAME, _COMMENT):
            if flags & flag:
                start = data.find(b"\0", start) + 1 or len(data)
        if flags & _HEADER_CRC:
            data[start : start + 2] = struct.pack("<H", zlib.crc32(data[at:start]) & 0xFFFF)
            start += 2
        inflater = zlib.decompressobj(-15)
        try:
            content = inflater.decompress(bytes(data[start:]), _MAX_CONTENT)
        except zlib.error:
            break
        at = len(data) - len(inflater.unused_data)
        if not inflater.eof or at + _TRAILER > len(data):
            break
        data[at : at + _TRAILER] = struct.pack("<II", zlib.crc32(content), len(content))
        at += _TRAILER
    draft.replace(bytes(data))


def _repack(draft: Draft, chance: random.Random) -> None:
    """Put a member anew: other content, other fields, other blocks."""
    content = functools.reduce(lambda text, _: edited(text, chance), range(2), bytes(draft.pieces[0][1]))[:5000]
    new = _member(content, chance.choice((0, 2, 4, 8, 16, 30)), chance.choice((0, 1, 9)))
    old = bytes(draft.pieces[0][1])
    draft.replace(chance.choice((new, old + new, new + old, old + new[: len(new) // 2])))


GZIP = Format("gzip", "disk.raw.gz", _gzips, _gzip_structure, _mend_gzip, _repack)
