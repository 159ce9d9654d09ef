"""The manifest of an appliance (`.mf`): one digest for each of its files.

Specification: DMTF DSP0243 1.1.1 and 2.1.1, "Integrity of the OVF package": lines of `SHA256(name)= hex`. Also read:
the output of sha1sum and its like (`hex  name`), which some build scripts store under the same name, and manifests
that are blank, which VirtualBox's test appliances have.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from diskfs_formats.errors import CorruptImage, DiskfsError
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.tar import normalised_path
from diskfs_formats.text import printable

MAX_MANIFEST_SIZE = 1 << 20
"""Bytes: 4,096 files with SHA-512 digests and names of 100 bytes."""
MAX_FINDINGS = 100
"""Lines of one manifest that are complained about; with more, it is no manifest."""
STEP = 4 << 20
"""Bytes of a file that are read and digested at once."""

DIGEST_DIGITS = {"MD5": 32, "SHA1": 40, "SHA224": 56, "SHA256": 64, "SHA384": 96, "SHA512": 128}
"""Hexadecimal digits of each algorithm's digest."""
UNLISTED_SUFFIXES = (".mf", ".cert")
"""Files that a manifest does not list: itself, and the certificate that signs it."""

_ALGORITHM_OF_DIGITS = {digits: algorithm for algorithm, digits in DIGEST_DIGITS.items()}
_LINE_END = re.compile(r"\r\n|\n|\r")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]+")
_SUM_LINE = re.compile(r"(?P<digest>[0-9A-Fa-f]{32,128}) [ *](?P<name>.+)")


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """The digest that a file should have, in lower-case hexadecimal."""

    algorithm: str
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest. `names` has every file it lists, also those whose digest cannot be verified."""

    name: str
    entries: tuple[ManifestEntry, ...]
    names: frozenset[str]
    findings: tuple[Finding, ...] = ()


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Parse a manifest; `name` is its name in the appliance, whose folder the names in it are relative to.

    Lines that are not understood become findings. Raises CorruptImage only if the manifest is too long.
    """
    if len(data) > MAX_MANIFEST_SIZE:
        raise CorruptImage(f"{printable(name)}: the manifest has {len(data)} bytes, at most {MAX_MANIFEST_SIZE}")
    folder = name.rpartition("/")[0]
    entries: list[ManifestEntry] = []
    names: list[str] = []
    findings: list[Finding] = []
    for number, line in enumerate(_LINE_END.split(data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")), 1):
        if not line.strip(" \t\0"):
            continue
        parsed = _entry(line.strip(" \t"))
        if isinstance(parsed, ManifestEntry):
            path = normalised_path(f"{folder}/{parsed.name}")
            names.append(path)
            problem = _problem(parsed)
            if problem is None:
                entries.append(ManifestEntry(parsed.algorithm, path, parsed.digest.lower()))
                continue
        else:
            problem = parsed
        if len(findings) < MAX_FINDINGS:
            findings.append(
                Finding("manifest-line", Severity.WARNING, f"{printable(name)}: line {number} is not used: {problem}")
            )
    if not entries and not findings:
        findings.append(Finding("manifest-empty", Severity.WARNING, f"{printable(name)}: the manifest lists no file"))
    return Manifest(name, tuple(entries), frozenset(names), tuple(findings))


def verify_manifest(manifest: Manifest, files: Mapping[str, ByteSource]) -> Iterator[Finding]:
    """Read every listed file of the appliance and compare digests; yield what the manifest and the files disagree on.

    Each file is read once, whatever the number of its digests. `files` has the names as they are in the appliance.
    """
    yield from manifest.findings
    wanted: dict[str, dict[str, set[str]]] = {}
    for entry in manifest.entries:
        wanted.setdefault(entry.name, {}).setdefault(entry.algorithm, set()).add(entry.digest)
    shown_manifest = printable(manifest.name)
    for name in sorted(manifest.names - files.keys()):
        yield Finding(
            "manifest-file-missing",
            Severity.WARNING,
            f"{shown_manifest}: the manifest lists {printable(name)!r}, which is not in the appliance",
        )
    for name, source in files.items():
        if name in wanted:
            yield from _verify(source, wanted[name], printable(name), shown_manifest)
        elif manifest.names and name not in manifest.names and not name.lower().endswith(UNLISTED_SUFFIXES):
            yield Finding(
                "manifest-unlisted",
                Severity.WARNING,
                f"{shown_manifest}: the manifest does not list {printable(name)!r}: its content is not verified",
            )


def _verify(source: ByteSource, wanted: Mapping[str, set[str]], shown: str, shown_manifest: str) -> Iterator[Finding]:
    hashes = {algorithm: hashlib.new(algorithm.lower(), usedforsecurity=False) for algorithm in wanted}
    try:
        for offset in range(0, source.size, STEP):
            data = source.read_at(offset, min(STEP, source.size - offset))
            for digester in hashes.values():
                digester.update(data)
    except DiskfsError as error:
        yield Finding("manifest-unreadable", Severity.ERROR, f"{shown}: the digest cannot be verified: {error}")
        return
    for algorithm, digester in hashes.items():
        for digest in sorted(wanted[algorithm] - {digester.hexdigest()}):
            yield Finding(
                "manifest-digest",
                Severity.ERROR,
                f"{shown}: {algorithm} is {digester.hexdigest()}, {shown_manifest} says {digest}",
                "the file was changed after the manifest was written, or damaged on the way: get it again",
            )


def _entry(line: str) -> ManifestEntry | str:
    """Return what a line says, or what is wrong with it."""
    match = _SUM_LINE.fullmatch(line)
    if match is not None:
        algorithm = _ALGORITHM_OF_DIGITS.get(len(match["digest"]), "")
        return ManifestEntry(algorithm, match["name"], match["digest"])
    head, equals, digest = line.rpartition("=")
    algorithm, parenthesis, name = head.rstrip().partition("(")
    if not equals or not parenthesis or not name.endswith(")"):
        return f"{printable(line, 80)!r}, expected ALGORITHM(NAME)= DIGEST"
    # OpenSSL 3 writes SHA2-256, others SHA-256.
    algorithm = algorithm.strip().upper().replace("SHA2-", "SHA").replace("-", "")
    return ManifestEntry(algorithm, name.removesuffix(")"), digest.strip())


def _problem(entry: ManifestEntry) -> str | None:
    """Say why an entry cannot be verified, or None."""
    shown = printable(entry.name, 80)
    digits = DIGEST_DIGITS.get(entry.algorithm)
    if digits is None:
        return f"the algorithm {printable(entry.algorithm, 40)!r} for {shown!r} is not known"
    if len(entry.digest) != digits or not _HEXADECIMAL.fullmatch(entry.digest):
        return (
            f"the digest of {shown!r} is {printable(entry.digest, 40)!r}, expected {digits} hexadecimal digits for "
            f"{entry.algorithm}"
        )
    return None
