"""What must come of each disk of the corpus: the digest that the manifest records, or a refusal for its reason.

The manifest gives reasons in words and in qemu-img's messages. `REFUSALS` says of each such image which of our errors
that reason is, and a word of the message without which it would be another reason.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from tests.helpers import CorpusRow

MEMBER = re.compile(r"(?P<appliance>.+\.ova)\.d/(?P<member>[^/]+)")
NUMBERED = re.compile(r"disk(\d+)=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that an image must give. With `when` "read" it opens, and reading it to the end gives the error."""

    error: str
    words: str
    when: Literal["open", "read"] = "open"


REFUSALS: Mapping[str, Refusal] = {
    # Recorded: a file that the image needs is absent.
    "vmdk-rs/vmfs_thick-000001.vmdk": Refusal("ParentUnavailable", "'vmfs_thick-000001-delta.vmdk' is needed"),
    "vmdk-forensic/tw_sparse_data.vmdk": Refusal("ParentUnavailable", "'tw_sparse_data-s001.vmdk' is needed"),
    "cdi/cirros-snapshot1.qcow2": Refusal("ParentUnavailable", "its parent 'cirros.raw' is not in"),
    "cdi/cirros-snapshot2.qcow2": Refusal("ParentUnavailable", "its parent 'cirros.raw' is not in"),
    "gce-import/from-virtualbox.ovf": Refusal("CorruptImage", "'ubuntu-xenial-16-disk001.vmdk', which is not"),
    "gce-import/missing-disk-units.ovf": Refusal("CorruptImage", "'ubuntu-xenial-16.04-cloudimg.vmdk', which is not"),
    "hostile/glance/testserver-no-disk.ova": Refusal("CorruptImage", "'testserver-disk1.vmdk', which is not"),
    # Recorded: it is no appliance.
    "cot/test.tar": Refusal("CorruptImage", "there is no .ovf inside"),
    "hostile/glance/testserver-bad-ovf.ova": Refusal("CorruptImage", "this is no OVF"),
    "hostile/glance/testserver-no-ovf.ova": Refusal("CorruptImage", "there is no .ovf inside"),
    # Recorded: a magic number, and text behind it where a header would be.
    "hostile/photon-controller/bad.vmdk": Refusal("UnsupportedFeature", "vmfsSparse (COWD) extent"),
    "hostile/photon-controller/good.vmdk": Refusal("UnsupportedFeature", "vmfsSparse (COWD) extent"),
    "hostile/photon-controller/badMultipleDataFields.vmdk": Refusal("UnsupportedFeature", "version 168443711"),
    "hostile/photon-controller/good-space.vmdk": Refusal("TruncatedImage", "VMDK sparse header"),
    # Recorded: a number in the header that must not size anything.
    "hostile/recipes/vmdk-059-bad-granularity.vmdk": Refusal("CorruptImage", "grainSize is"),
    "hostile/recipes/vmdk-059-l2-too-big.vmdk": Refusal("CorruptImage", "numGTEsPerGT is"),
    "hostile/recipes/vmdk-059-l1-too-big.vmdk": Refusal("CorruptImage", "capacity is"),
    "hostile/recipes/vmdk-059-malformed-vmfs-line.vmdk": Refusal("CorruptImage", "extent 1 of the descriptor"),
    "hostile/recipes/qcow2-080-huge-header.qcow2": Refusal("CorruptImage", "header_length is"),
    "hostile/recipes/qcow2-080-huge-ext.qcow2": Refusal("CorruptImage", "extension 0x12345678"),
    "hostile/recipes/qcow2-080-huge-refcount-table.qcow2": Refusal("CorruptImage", "refcount_table_clusters is"),
    "hostile/recipes/qcow2-080-misaligned-refcount.qcow2": Refusal("CorruptImage", "refcount_table_offset is"),
    "hostile/recipes/qcow2-080-backing-size-huge.qcow2": Refusal("CorruptImage", "backing_file_size is"),
    "hostile/recipes/vdi-084-max-size.vdi": Refusal("CorruptImage", "the block map ends at"),
    "hostile/recipes/vdi-084-too-large.vdi": Refusal("CorruptImage", "cbDisk is"),
    "hostile/recipes/mut-vhd-blocksize0.vhd": Refusal("CorruptImage", "block size is 0"),
    # qcow of version 1 is refused by name, whatever its header claims.
    "hostile/recipes/qcow1-092-cluster-ff.qcow": Refusal("UnsupportedFeature", "QCOW1"),
    "hostile/recipes/qcow1-092-cluster-1f.qcow": Refusal("UnsupportedFeature", "QCOW1"),
    "hostile/recipes/qcow1-092-cluster-08.qcow": Refusal("UnsupportedFeature", "QCOW1"),
    "hostile/recipes/qcow1-092-l2-ff.qcow": Refusal("UnsupportedFeature", "QCOW1"),
    "hostile/recipes/qcow1-092-l2-1b.qcow": Refusal("UnsupportedFeature", "QCOW1"),
    "hostile/recipes/qcow1-092-size-ee.qcow": Refusal("UnsupportedFeature", "QCOW1"),
    "hostile/recipes/qcow1-092-size-7f.qcow": Refusal("UnsupportedFeature", "QCOW1"),
    # Recorded: it names a file that must never be opened.
    "hostile/recipes/vmdk-cve-2022-47951-flat-etc-passwd.vmdk": Refusal("UnsafeReference", "'/etc/passwd'"),
    "hostile/recipes/qcow2-backing-etc-passwd.qcow2": Refusal("UnsafeReference", "'/etc/passwd'"),
    # Its extent file is looked for before its parent is, and is not there either.
    "hostile/recipes/vmdk-parent-etc-passwd.vmdk": Refusal("ParentUnavailable", "'vmdk-parent-etc-passwd-s001.vmdk'"),
    # Recorded: an error, not zeroes, where the data is.
    "hostile/recipes/mut-streamopt-truncated-mid-grain.vmdk": Refusal("CorruptImage", "grain 10", when="read"),
    "hostile/recipes/mut-vhd-bat-past-eof.vhd": Refusal("CorruptImage", "past the end of the file", when="read"),
}
"""Path of the corpus -> the error that it must give."""

SAME_AS: Mapping[str, str] = {
    # No other reader opens the bare extent of a split disk, but it is the only one of its disk.
    "vmdk-forensic/tw_sparse-s001.vmdk": "vmdk-forensic/tw_sparse.vmdk",
}
"""Path of the corpus without a digest of its own -> the row whose digest is its as well."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The SHA-256 that a disk must have, over `size` bytes; None where the manifest does not say how many."""

    sha256: str
    size: int | None
    by: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come of one file of the corpus: a refusal, or a digest for each disk that one is recorded for.

    Keys are disk indices, or the names of the members that hold the disks.
    """

    row: CorpusRow
    refusal: Refusal | None
    digests: Mapping[str, Digest]


def expectations(rows: Sequence[CorpusRow]) -> list[Expected]:
    """Return what must come of each file, in the manifest's order. Members are part of their appliance."""
    by_path = {row.path: row for row in rows}
    members: dict[str, dict[str, Digest]] = {}
    for row in rows:
        if row.is_member and (match := MEMBER.fullmatch(row.path)) and (digest := _recorded(row)):
            members.setdefault(match["appliance"], {})[match["member"]] = digest
    return [
        Expected(row, REFUSALS.get(row.path), _digests(row, by_path, members.get(row.path, {})))
        for row in rows
        if not row.is_member
    ]


def _digests(row: CorpusRow, by_path: Mapping[str, CorpusRow], members: Mapping[str, Digest]) -> Mapping[str, Digest]:
    if row.path in REFUSALS:
        return {}
    if numbered := NUMBERED.findall(row.notes):
        return {index: Digest(sha256, None, "the appliance's maker") for index, sha256 in numbered}
    if members:
        return members
    if row.format == "ovf":
        # The disks of a descriptor are files beside it, and have rows of their own.
        folder = PurePosixPath(row.path).parent
        beside = [other for other in by_path.values() if PurePosixPath(other.path).parent == folder]
        return {PurePosixPath(other.path).name: digest for other in beside if (digest := _recorded(other))}
    recorded = _recorded(by_path[SAME_AS.get(row.path, row.path)])
    return {"0": recorded} if recorded else {}


def _recorded(row: CorpusRow) -> Digest | None:
    if row.sha256_content:
        return Digest(row.sha256_content, row.virtual_size, row.content_by)
    if row.format.startswith("raw"):
        return Digest(row.sha256_file, row.size, "the file itself: it is no image")
    return None
