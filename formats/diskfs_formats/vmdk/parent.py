"""The parent of a delta disk: the name it may have, and whether a disk is the one that is meant.

Specification: VMware, Virtual Disk Format 5.0 (2011), "The Descriptor File": parentCID and parentFileNameHint.
"""

import re

from diskfs_formats.driver import AbsentParent, RelatedFiles
from diskfs_formats.errors import ParentUnavailable
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.vmdk.descriptor import NO_PARENT, Descriptor
from diskfs_formats.vmdk.image import VmdkImage

MAX_NAME = 255
"""Bytes of a file name on every file system in use."""
_DRIVES = re.compile(r"^(?:[A-Za-z]:)+")


def open_parent(
    name: str, descriptor: Descriptor, related: RelatedFiles, findings: list[Finding]
) -> VmdkImage | AbsentParent:
    """Open the parent of the delta disk `name` and make sure that its CID is the one that the child was made over.

    Only a bare name reaches `related`, never the path that the descriptor holds. Raises ParentUnavailable, and what
    `related` raises.
    """
    parent = related.open_parent(parent_names(descriptor), "vmdk")
    if isinstance(parent, AbsentParent):
        return parent
    try:
        if not isinstance(parent, VmdkImage):
            raise ParentUnavailable(f"{name}: its parent {parent.name} is no VMDK")
        expected = descriptor.parent_cid
        if expected == NO_PARENT:
            findings.append(
                Finding(
                    "vmdk-parent-unverified",
                    Severity.WARNING,
                    f"{name}: the descriptor names a parent and no parentCID; whether {parent.name} is that parent "
                    "cannot be told",
                )
            )
        elif parent.cid != expected:
            found = "it has none" if parent.cid is None else f"its CID is {parent.cid:08x}"
            raise ParentUnavailable(
                f"{name}: {parent.name} is not its parent, or was changed since: {found}, expected {expected:08x}; "
                "name the right file with --parent FILE"
            )
    except BaseException:
        parent.close()
        raise
    return parent


def parent_names(descriptor: Descriptor) -> list[str]:
    """Return the bare name of the parent, or nothing if the hint is not a path that ends in one.

    A snapshot's hint is often the path that the parent had on its own host; it is looked for beside the child alone.
    """
    name = _DRIVES.sub("", re.split(r"[\\/]", descriptor.parent_file_name)[-1])
    if name in {"", ".", ".."} or any(ord(character) < 32 for character in name):
        return []
    return [name] if len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME else []
