"""Hostile archives and descriptors: each is refused with one clear error, quickly, in little memory, opening nothing.

All cases run in one child process with a limited address space, which reports on each.
"""

import gzip
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs_formats import errors
from diskfs_formats.errors import DiskfsError
from diskfs_formats.manifest import parse_manifest
from diskfs_formats.ova import open_ova
from diskfs_formats.source import MemorySource
from diskfs_formats.tar import MAX_MEMBERS, MAX_RECORDS, is_tar, read_tar_index
from diskfs_formats.text import printable
from tests.helpers import ROOT

SECONDS = 2.0
GROWTH = 64 << 20
"""Bytes of memory that one case may take."""
END = bytes(1024)
GIB_6 = b"60000000000\0"
"""6 GiB, in octal."""


# Archives, byte by byte


def header(name: bytes = b"vm.ovf", size: bytes = b"0", typeflag: bytes = b"0", **fields: bytes) -> bytes:
    """A header with a right checksum; the offsets are those of the ustar format."""
    block = bytearray(512)
    values = {0: name, 124: size, 156: typeflag, 257: fields.get("magic", b"ustar\00000")}
    values |= {157: fields.get("link", b""), 345: fields.get("prefix", b"")}
    for offset, value in values.items():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes = b"", typeflag: bytes = b"0") -> bytes:
    return header(name, b"%o" % len(data), typeflag) + data + bytes(-len(data) % 512)


def pax(records: bytes, typeflag: bytes = b"x") -> bytes:
    return member(b"PaxHeaders/x", records, typeflag)


def record(key: bytes, value: bytes) -> bytes:
    """A pax record with the right length in front."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def long_name(name: bytes) -> bytes:
    return member(b"././@LongLink", name + b"\0", b"L")


def base_256(value: int) -> bytes:
    return (value % (1 << 96) | (0x80 << 88 if value >= 0 else 0)).to_bytes(12, "big")


GOOD = member(b"vm.ovf", b"<Envelope/>")
TARS: dict[str, tuple[bytes, str]] = {
    # sizes
    "size-negative-binary": (GOOD + header(b"x", base_256(-512)) + END, "CorruptImage"),
    "size-minus-one-binary": (header(b"x", b"\xff" * 12) + END, "CorruptImage"),
    "size-negative-octal": (GOOD + header(b"x", b"-0000001000") + END, "CorruptImage"),
    "size-not-octal": (GOOD + header(b"x", b"00000000009") + END, "CorruptImage"),
    "size-text": (GOOD + header(b"x", b"lots") + END, "CorruptImage"),
    "size-2-to-90": (GOOD + header(b"x", base_256(1 << 90)) + END, "TruncatedImage"),
    "size-8-gib": (GOOD + header(b"x", b"77777777777") + END, "TruncatedImage"),
    "size-one-too-many": (GOOD + header(b"x", b"2001") + END, "TruncatedImage"),
    "directory-with-data": (GOOD + member(b"d/", b"data", b"5") + END, "CorruptImage"),
    "directory-by-name-with-data": (GOOD + member(b"d/", b"data") + END, "CorruptImage"),
    # what comes before a member
    "long-name-of-6-gib": (header(b"x", GIB_6, b"L") + END, "CorruptImage"),
    "long-link-of-6-gib": (header(b"x", GIB_6, b"K") + END, "CorruptImage"),
    "pax-of-6-gib": (header(b"x", GIB_6, b"x") + END, "CorruptImage"),
    "global-of-6-gib": (header(b"x", GIB_6, b"g") + END, "CorruptImage"),
    "long-name-negative": (header(b"x", base_256(-1), b"L") + END, "CorruptImage"),
    "pax-negative": (header(b"x", base_256(-1), b"x") + END, "CorruptImage"),
    "pax-over-the-limit": (pax(record(b"comment", b"c" * 65536)) + GOOD + END, "CorruptImage"),
    "long-name-over-the-limit": (long_name(b"n" * 65536) + GOOD + END, "CorruptImage"),
    "long-name-over-the-name-limit": (long_name(b"n" * 1025) + GOOD + END, "CorruptImage"),
    "long-name-empty": (long_name(b"") + GOOD + END, "UnsafeReference"),
    "long-names-in-a-row": (long_name(b"a") + long_name(b"b") + GOOD + END, "CorruptImage"),
    "pax-in-a-row": (pax(b"") + pax(b"") + GOOD + END, "CorruptImage"),
    "pax-at-the-end": (GOOD + pax(record(b"path", b"x")) + END, "TruncatedImage"),
    "long-name-at-the-end": (GOOD + long_name(b"x") + END, "TruncatedImage"),
    "pax-cut": ((GOOD + pax(record(b"path", b"x" * 600)))[:-512], "TruncatedImage"),
    "pax-record-of-length-0": (pax(b"0 path=x\n") + GOOD + END, "CorruptImage"),
    "pax-record-too-long": (pax(b"999 path=x\n") + GOOD + END, "CorruptImage"),
    "pax-record-too-short": (pax(b"3 path=x\n") + GOOD + END, "CorruptImage"),
    "pax-record-of-huge-length": (pax(b"9" * 600 + b" path=x\n") + GOOD + END, "CorruptImage"),
    "pax-record-without-length": (pax(b"path=x\n") + GOOD + END, "CorruptImage"),
    "pax-record-of-negative-length": (pax(b"-9 path=x\n") + GOOD + END, "CorruptImage"),
    "pax-record-without-equals": (pax(b"7 path\n") + GOOD + END, "CorruptImage"),
    "pax-record-without-newline": (pax(b"9 path=xx") + GOOD + END, "CorruptImage"),
    "pax-size-negative": (pax(record(b"size", b"-1")) + GOOD + END, "CorruptImage"),
    "pax-size-text": (pax(record(b"size", b"1e9")) + GOOD + END, "CorruptImage"),
    "pax-size-empty": (pax(record(b"size", b"")) + GOOD + END, "CorruptImage"),
    "pax-size-of-a-million-digits": (pax(record(b"size", b"9" * 65000)) + GOOD + END, "CorruptImage"),
    "pax-size-2-to-50": (pax(record(b"size", b"%d" % (1 << 50))) + GOOD + END, "TruncatedImage"),
    "pax-path-leads-out": (pax(record(b"path", b"../../etc/passwd")) + GOOD + END, "UnsafeReference"),
    "pax-path-absolute": (pax(record(b"path", b"/etc/passwd")) + GOOD + END, "UnsafeReference"),
    "pax-path-with-nul": (pax(record(b"path", b"a\0b")) + GOOD + END, "UnsafeReference"),
    "pax-path-empty": (pax(record(b"path", b"")) + GOOD + END, "UnsafeReference"),
    "global-path": (pax(record(b"path", b"x"), b"g") + GOOD + END, "UnsupportedFeature"),
    "global-size": (pax(record(b"size", b"1"), b"g") + GOOD + END, "UnsupportedFeature"),
    # sparse files
    "gnu-sparse-name": (
        pax(record(b"GNU.sparse.name", b"../../etc/x") + record(b"GNU.sparse.realsize", b"%d" % (1 << 50)))
        + GOOD
        + END,
        "UnsupportedFeature",
    ),
    "gnu-sparse-map": (pax(record(b"GNU.sparse.map", b"0,1")) + GOOD + END, "UnsupportedFeature"),
    "gnu-sparse-global": (pax(record(b"GNU.sparse.major", b"1"), b"g") + GOOD + END, "UnsupportedFeature"),
    "gnu-sparse-old": (GOOD + member(b"x", b"", b"S") + END, "UnsupportedFeature"),
    # kinds of members
    "symbolic-link": (GOOD + header(b"x", typeflag=b"2", link=b"/etc/passwd") + END, "UnsafeReference"),
    "symbolic-link-and-member-below": (
        header(b"x", typeflag=b"2", link=b"/etc") + member(b"x/passwd", b"evil") + END,
        "UnsafeReference",
    ),
    "symbolic-link-under-a-pax-path": (
        pax(record(b"path", b"x")) + header(b"y", typeflag=b"2", link=b"/etc/passwd") + END,
        "UnsafeReference",
    ),
    "hard-link": (GOOD + header(b"x", typeflag=b"1", link=b"vm.ovf") + END, "UnsafeReference"),
    "hard-link-of-size": (GOOD + header(b"x", b"1000", b"1", link=b"vm.ovf") + bytes(512) + END, "UnsafeReference"),
    "character-device": (GOOD + header(b"x", typeflag=b"3") + END, "UnsupportedFeature"),
    "block-device": (GOOD + header(b"x", typeflag=b"4") + END, "UnsupportedFeature"),
    "fifo": (GOOD + header(b"x", typeflag=b"6") + END, "UnsupportedFeature"),
    "contiguous-file": (GOOD + header(b"x", typeflag=b"7") + END, "UnsupportedFeature"),
    "volume-label": (header(b"x", typeflag=b"V") + GOOD + END, "UnsupportedFeature"),
    "rest-of-another-volume": (header(b"x", typeflag=b"M") + GOOD + END, "UnsupportedFeature"),
    "solaris-header": (header(b"x", typeflag=b"X") + GOOD + END, "UnsupportedFeature"),
    "unknown-type": (GOOD + header(b"x", typeflag=b"\xff") + END, "UnsupportedFeature"),
    "apple-double-link": (GOOD + header(b"._vm.ovf", typeflag=b"2", link=b"/etc/passwd") + END, "UnsafeReference"),
    # names
    "name-twice": (GOOD + GOOD + END, "CorruptImage"),
    "name-twice-with-a-dot": (GOOD + member(b"././vm.ovf") + END, "CorruptImage"),
    "name-twice-by-pax": (GOOD + pax(record(b"path", b"vm.ovf")) + member(b"x") + END, "CorruptImage"),
    "name-twice-by-long-name": (GOOD + long_name(b"vm.ovf") + member(b"x") + END, "CorruptImage"),
    "name-absolute": (member(b"/vm.ovf") + END, "UnsafeReference"),
    "name-leads-out": (member(b"../vm.ovf") + END, "UnsafeReference"),
    "name-leads-out-in-the-middle": (member(b"a/../../vm.ovf") + END, "UnsafeReference"),
    "name-leads-out-by-prefix": (header(b"vm.ovf", prefix=b"..") + END, "UnsafeReference"),
    "name-absolute-by-prefix": (header(b"vm.ovf", prefix=b"/etc") + END, "UnsafeReference"),
    "name-absolute-after-a-dot": (member(b".//C:/vm.ovf") + END, "UnsafeReference"),
    "name-with-backslash": (member(b"..\\vm.ovf") + END, "UnsafeReference"),
    "name-with-drive": (member(b"C:vm.ovf") + END, "UnsafeReference"),
    "name-empty": (member(b"") + END, "UnsafeReference"),
    "name-of-dots": (member(b"././.") + END, "UnsafeReference"),
    "directory-leads-out": (GOOD + member(b"../d/", b"", b"5") + END, "UnsafeReference"),
    # numbers of members
    "too-many-members": (b"".join(header(b"%d" % n) for n in range(MAX_MEMBERS + 1)) + END, "CorruptImage"),
    "too-many-directories": (header(b"d/", typeflag=b"5") * (MAX_RECORDS + 1) + END, "CorruptImage"),
    "too-many-globals": (header(b"g", typeflag=b"g") * (MAX_RECORDS + 1) + END, "CorruptImage"),
    # no archive at all
    "empty": (b"", "CorruptImage"),
    "one-byte-short-of-a-header": (GOOD[:511], "CorruptImage"),
    "zeros": (bytes(10240), "CorruptImage"),
    "ones": (b"\xff" * 10240, "CorruptImage"),
    "wrong-checksum": (GOOD[:148] + b"0000000\0" + GOOD[156:] + END, "CorruptImage"),
    "garbage-after-a-member": (GOOD + b"\xff" * 512 + END, "CorruptImage"),
    # archives that are no appliance
    "no-descriptor": (member(b"x.vmdk") + END, "CorruptImage"),
    "only-a-companion-descriptor": (member(b"._vm.ovf", b"<Envelope/>") + member(b"x") + END, "CorruptImage"),
    "two-descriptors": (member(b"x") + member(b"a.ovf") + member(b"b.ovf") + END, "CorruptImage"),
    "descriptor-of-5-mib": (member(b"vm.ovf", b" " * (5 << 20)) + END, "CorruptImage"),
    "descriptor-of-no-bytes": (member(b"vm.ovf") + END, "CorruptImage"),
}


# Descriptors


OVF = b'<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">'
FULL = 4 << 20
LAUGHS = b"".join(b'<!ENTITY a%d "%s">' % (n, (b"&a%d;" % (n - 1)) * 10) for n in range(1, 10))


def filled(start: bytes, piece: bytes, end: bytes) -> bytes:
    """As many pieces as make a descriptor of just under 4 MiB."""
    return start + piece * ((FULL - len(start) - len(end)) // len(piece)) + end


def numbered(start: bytes, piece: bytes, end: bytes) -> bytes:
    """The same with a different number in each piece."""
    count = (FULL - len(start) - len(end)) // len(piece % 10**6)
    return start + b"".join(piece % (10**6 + number) for number in range(count)) + end


XMLS: dict[str, tuple[bytes, str]] = {
    "document-type": (b"<!DOCTYPE Envelope>" + OVF + b"</Envelope>", "UnsupportedFeature"),
    "billion-laughs": (
        b'<!DOCTYPE E [<!ENTITY a0 "ha">' + LAUGHS + b"]>" + OVF + b"&a9;</Envelope>",
        "UnsupportedFeature",
    ),
    "quadratic-blow-up": (
        b'<!DOCTYPE E [<!ENTITY a "' + b"a" * 100_000 + b'">]>' + OVF + b"&a;" * 10_000 + b"</Envelope>",
        "UnsupportedFeature",
    ),
    "external-entity": (
        b'<!DOCTYPE E [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + OVF + b"&a;</Envelope>",
        "UnsupportedFeature",
    ),
    "external-document-type": (
        b'<!DOCTYPE E SYSTEM "http://192.0.2.1/evil.dtd">' + OVF + b"</Envelope>",
        "UnsupportedFeature",
    ),
    "parameter-entity": (
        b'<!DOCTYPE E [<!ENTITY % a SYSTEM "file:///dev/zero"> %a;]>' + OVF + b"</Envelope>",
        "UnsupportedFeature",
    ),
    "document-type-in-utf-16": (
        (b"<!DOCTYPE Envelope>" + OVF + b"</Envelope>").decode().encode("utf-16"),
        "UnsupportedFeature",
    ),
    "undefined-entity": (OVF + b"&nbsp;</Envelope>", "CorruptImage"),
    "deep": (filled(OVF, b"<a>", b""), "CorruptImage"),
    "deep-and-closed": (OVF + b"<a>" * 200_000 + b"</a>" * 200_000 + b"</Envelope>", "CorruptImage"),
    "wide": (filled(OVF, b"<a/>", b"</Envelope>"), "CorruptImage"),
    "attributes-of-one-tag": (numbered(OVF + b"<a", b' a%d=""', b"/></Envelope>"), "CorruptImage"),
    "attributes-of-one-tag-in-utf-16": (
        (OVF + b"<a" + b"".join(b' a%d=""' % n for n in range(180_000)) + b"/></Envelope>").decode().encode("utf-16"),
        "CorruptImage",
    ),
    "attributes-of-many-tags": (numbered(OVF, b'<a b%d="" c="" d="" e=""/>', b"</Envelope>"), "CorruptImage"),
    "namespaces-of-one-tag": (numbered(OVF + b"<a", b' xmlns:a%d="b"', b"/></Envelope>"), "CorruptImage"),
    "one-tag-that-never-ends": (filled(OVF + b'<a b="', b"b", b""), "CorruptImage"),
    "comment-that-never-ends": (filled(OVF + b"<!--", b"=", b""), "CorruptImage"),
    "name-of-4-mib": (filled(OVF + b"<", b"a", b"/>"), "CorruptImage"),
    "unknown-encoding": (b'<?xml version="1.0" encoding="utf-7"?>' + OVF + b"</Envelope>", "UnsupportedFeature"),
    "codec-as-encoding": (b'<?xml version="1.0" encoding="zlib"?>' + OVF + b"</Envelope>", "UnsupportedFeature"),
    "wrong-utf-8": (OVF + b"\xff\xfe</Envelope>", "CorruptImage"),
    "control-character": (OVF + b"\x01</Envelope>", "CorruptImage"),
    "zeros": (bytes(1000), "CorruptImage"),
    "not-closed": (OVF, "CorruptImage"),
    "two-roots": (OVF + b"</Envelope>" + OVF + b"</Envelope>", "CorruptImage"),
    "other-root": (b"<html/>", "CorruptImage"),
    "root-with-escapes": ("<\u00e9\u0301x/>".encode(), "CorruptImage"),
    "encrypted": (b'<E xmlns="http://www.w3.org/2001/04/xmlenc#"/>', "UnsupportedFeature"),
    "files-of-one-id": (
        OVF + b'<References><File ovf:id="a" ovf:href="x"/><File ovf:id="a" ovf:href="y"/></References></Envelope>',
        "CorruptImage",
    ),
    "disks-of-one-id": (
        OVF + b'<DiskSection><Disk ovf:diskId="a"/><Disk ovf:diskId="a"/></DiskSection></Envelope>',
        "CorruptImage",
    ),
}

HREFS = [
    "/etc/passwd",
    "../x",
    "a/../../x",
    "..",
    "%2e%2e/x",
    "%2Fetc%2Fpasswd",
    "..%2fx",
    "http://192.0.2.1/x",
    "https://192.0.2.1/x",
    "file:///etc/passwd",
    "ftp://192.0.2.1/x",
    "nbd:unix:/x",
    "json:{}",
    "C:\\x",
    "C:x",
    "\\\\192.0.2.1\\x",
    "a\\..\\x",
    "a%5C..%5Cx",
    "%00",
    "",
    ".",
    "/dev/zero",
    "/proc/self/environ",
    "x" * 5000,
    "\u0430.vmdk",
    "a\u202ekdmv",
]


def descriptor_with(href: str, attributes: str = "") -> bytes:
    files = f'<References><File ovf:id="f" ovf:href="{href}" {attributes}/></References>'
    disks = '<DiskSection><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="1"/></DiskSection>'
    return OVF + (files + disks + "</Envelope>").encode()


def damaged_gzip() -> Iterator[tuple[str, bytes]]:
    whole = gzip.compress(bytes(range(256)) * 100)
    yield "cut", whole[:-9]
    yield "checksum", whole[:-8] + bytes(4) + whole[-4:]
    yield "size", whole[:-4] + b"\xff" * 4
    yield "data", whole[:10] + b"\xff" * 50
    yield "appended", whole + b"garbage"
    yield "second-member", whole + b"\x1f\x8b\x09"
    yield "endless-name", b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 300_000
    yield "bomb-that-is-cut", gzip.compress(bytes(100 << 20), 9)[:-8]


def cases() -> dict[str, tuple[bytes, str]]:
    """Every case as an archive, with the class of the error it must give."""
    found = {f"tar-{name}": case for name, case in TARS.items()}
    found |= {f"xml-{name}": (member(b"vm.ovf", data) + END, error) for name, (data, error) in XMLS.items()}
    for number, href in enumerate(HREFS):
        safe = href.startswith((".", "x", "\u0430", "a\u202e")) and href not in {"..", "../x", "..%2fx"}
        error = ("UnsafeReference" if href == "." else "CorruptImage") if safe else "UnsafeReference"
        found[f"href-{number}"] = (member(b"vm.ovf", descriptor_with(href)) + END, error)
    for name, data in damaged_gzip():
        archive = member(b"vm.ovf", descriptor_with("x")) + member(b"x", data) + END
        found[f"gzip-{name}"] = (archive, "ImageError")
    chunks = descriptor_with("x", 'ovf:chunkSize="1"')
    endless = b"".join(member(b"x.%09d" % number, b"c") for number in range(MAX_MEMBERS - 2)) + member(b"x.000009999")
    found["chunks-with-a-gap-at-the-end"] = (member(b"vm.ovf", chunks) + endless + END, "CorruptImage")
    return found


CASES = cases()


# The child process


def run_cases(folder: str) -> None:
    """Open every archive of a folder and all its disks; print one JSON line for each. Runs in the child."""
    opened: list[str] = []
    watching = False

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in {"open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"}:
            opened.append(f"{event} {arguments[0]}")

    # What Python loads when it is first needed is not what is watched for.
    printable("\u202e")
    _outcome(GOOD + END)
    sys.addaudithook(audit)
    limit = _memory("VmSize") + 3 * GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(Path(folder).iterdir()):
        data = path.read_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
        before = _memory("VmRSS")
        start = time.process_time()
        watching = True
        error, message = _outcome(data)
        watching = False
        seconds = time.process_time() - start
        report = {"seconds": seconds, "growth": _memory("VmHWM") - before, "opened": opened[:]}
        print(json.dumps({"name": path.name, "error": error, "message": message, **report}), flush=True)
        opened.clear()


def _outcome(data: bytes) -> tuple[str, str]:
    try:
        appliance = open_ova(MemorySource(data, "vm.ova"))
        for disk in appliance.disks:
            source = disk.open()
            source.read_at(0, min(source.size, 4096))
    except DiskfsError as error:
        return type(error).__name__, str(error)
    except Exception as error:  # noqa: BLE001 - what the test is about
        return f"NOT OURS: {type(error).__name__}", repr(error)
    return "", ""


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(key + ":")[2].split()[0]) << 10


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, (data, _) in CASES.items():
        (folder / name).write_bytes(data)
    code = "import sys; from tests.hostile.test_hostile_appliances import run_cases; run_cases(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'formats'}"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return {found["name"]: found for found in map(json.loads, result.stdout.splitlines())}


def test_there_are_enough_cases() -> None:
    assert len(TARS) >= 40
    assert len(XMLS) >= 12
    assert len(HREFS) >= 25


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_appliance_is_refused(name: str, outcomes: dict[str, dict[str, object]]) -> None:
    found = outcomes[name]
    wanted = getattr(errors, CASES[name][1])
    given = getattr(errors, str(found["error"]), None)
    assert given is not None, found
    assert issubclass(given, wanted), found


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_appliance_costs_little(name: str, outcomes: dict[str, dict[str, object]]) -> None:
    found = outcomes[name]
    assert float(str(found["seconds"])) < SECONDS, found
    assert int(str(found["growth"])) < GROWTH, found
    assert found["opened"] == []


@pytest.mark.parametrize("name", CASES)
def test_the_message_is_one_short_printable_line(name: str, outcomes: dict[str, dict[str, object]]) -> None:
    message = str(outcomes[name]["message"])
    assert message.isprintable()
    assert len(message) < 800
    assert "vm.o" in message


# Chance


def small_archive() -> bytes:
    """An archive with every kind of header that is read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("vm.ovf", b"<x/>"), ("n" * 120 + ".vmdk", b"d" * 700)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    whole = buffer.getvalue()
    return whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 512] + long_name(b"l" * 200) + member(b"x", b"data") + END


def test_ten_thousand_damaged_headers_give_an_index_or_our_error() -> None:
    whole = small_archive()
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    values = b"\0\xff\x80 /.\\:-0178xgLKS5"
    chance = random.Random(20240229)
    refused = 0
    for _ in range(10_000):
        data = bytearray(whole)
        at = chance.choice(headers)
        for _ in range(chance.choice((1, 1, 2, 6))):
            # Mostly where it matters: the name, the size, the type, and what follows the header.
            field = chance.choice((range(100), range(124, 136), range(156, 157), range(512), range(512, 700)))
            position = at + chance.choice(field)
            if position < len(data):
                data[position] = chance.choice(values) if chance.random() < 0.8 else chance.randrange(256)
        if chance.random() < 0.9:
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        try:
            index = read_tar_index(MemorySource(bytes(data), "vm.ova"))
        except DiskfsError:
            refused += 1
        else:
            assert all(found.offset + found.size <= len(data) for found in index.members)
        is_tar(bytes(data))
    assert 2_000 < refused < 9_000


def test_damaged_descriptors_and_manifests_give_a_result_or_our_error() -> None:
    chance = random.Random(17)
    text = descriptor_with("disk%20one.vmdk", 'ovf:size="7" ovf:chunkSize="5"')
    listed = b"SHA256(a)= " + b"0" * 64 + b"\n" + b"0" * 40 + b"  b\n"
    for _ in range(2_000):
        data = bytearray(text)
        lines = bytearray(listed)
        for _ in range(chance.choice((1, 2, 8))):
            position = chance.randrange(len(data))
            data[position : position + chance.choice((0, 1, 9))] = chance.choice(
                (b"<a>", b"</a>", b'"', b"&#0;", b"${x}", b"9" * 30, chance.randbytes(1))
            )
            lines[chance.randrange(len(lines))] = chance.randrange(256)
        parse_manifest(bytes(lines), "vm.mf")
        error, _ = _outcome(member(b"vm.ovf", bytes(data)) + END)
        assert not error.startswith("NOT OURS"), data
