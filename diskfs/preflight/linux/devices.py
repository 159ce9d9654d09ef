"""From a device's name in a guest to a volume of the given disks, and back to the UUID that blkid would give it.

Names such as /dev/sdb1 depend on the order in which the machine found its disks. Offline they are taken in the order of
the source (that of the OVF or the command), and `by_order` says that a match rests on it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from diskfs.disks.opening import OpenedDisk
from diskfs.guest.files import Volume
from diskfs_formats.errors import DiskfsError
from diskfs_formats.partitions import PartitionTable

_LETTERED = re.compile(r"/dev/(?:sd|hd|vd|xvd)([a-z]{1,2})(\d{0,3})$")
_NUMBERED = re.compile(r"/dev/(?:nvme(\d{1,3})n1|mmcblk(\d{1,3}))(?:p(\d{1,3}))?$")
_MAPPER = re.compile(r"/dev/mapper/(.+)$")
_VG_LV = re.compile(r"/dev/([^/]+)/([^/]+)$")

UNSTABLE_DEVICE = re.compile(
    r"/dev/(?:sd|hd|vd|xvd)[a-z]{1,2}\d*$|/dev/nvme\d+n\d+(?:p\d+)?$|/dev/disk/by-(?:path|id)/"
)
"""Names that change with the controller: what the guide asks to be replaced by UUIDs."""


@dataclass(frozen=True, slots=True)
class Match:
    volume: Volume
    by_order: bool = False
    """The match rests on the order of the disks."""


class Devices:
    """The volumes of a source and how a guest names them. `tables` are those of the disks, in their order."""

    def __init__(
        self, volumes: Sequence[Volume], disks: Sequence[OpenedDisk], tables: Sequence[PartitionTable | None]
    ) -> None:
        self.volumes = tuple(volumes)
        self._disks = disks
        self._tables = tables
        self._uuids: dict[str, str] = {}

    def resolve(self, spec: str) -> Match | None:
        """Return the volume that `UUID=...`, a label or a path under /dev means, or None."""
        name, separator, value = spec.partition("=")
        if separator and name in {"UUID", "LABEL", "PARTUUID", "PARTLABEL"}:
            return self._by_tag(name, value.strip("\"'"))
        for name in ("uuid", "label", "partuuid", "partlabel"):
            if spec.startswith(f"/dev/disk/by-{name}/"):
                return self._by_tag(name.upper(), spec.rpartition("/")[2])
        if match := _LETTERED.match(spec):
            disk = 0
            for letter in match[1]:
                disk = disk * 26 + ord(letter) - ord("a") + 1
            return self._by_place(disk - 1, int(match[2]) if match[2] else None)
        if match := _NUMBERED.match(spec):
            return self._by_place(int(match[1] or match[2]), int(match[3]) if match[3] else None)
        return self._logical(spec)

    def uuid(self, volume: Volume) -> str:
        """Return what blkid says, lower case but for FAT; empty if it has none or cannot be read."""
        if volume.files is not None and volume.files.uuid:
            return volume.files.uuid
        if volume.name not in self._uuids:
            try:
                self._uuids[volume.name] = self._read_uuid(volume)
            except DiskfsError:
                self._uuids[volume.name] = ""
        return self._uuids[volume.name]

    def _by_tag(self, tag: str, value: str) -> Match | None:
        wanted = value.lower()
        for volume in self.volumes:
            if tag == "UUID" and self.uuid(volume).lower() == wanted and wanted:
                return Match(volume)
            if tag == "LABEL" and volume.files is not None and volume.files.label == value and value:
                return Match(volume)
            if tag.startswith("PART") and self._partition_tag(volume, tag).lower() == wanted and wanted:
                return Match(volume)
        return None

    def _partition_tag(self, volume: Volume, tag: str) -> str:
        if volume.partition is None or ":" in volume.name or volume.disk_index >= len(self._tables):
            return ""
        table = self._tables[volume.disk_index]
        found = next((one for one in table.partitions if one.number == volume.partition), None) if table else None
        if table is None or found is None:
            return ""
        if tag == "PARTLABEL":
            return found.name
        if found.unique_id is not None:
            return str(found.unique_id)
        return f"{table.disk_id.removeprefix('0x')}-{found.number:02x}"

    def _by_place(self, disk: int, partition: int | None) -> Match | None:
        for volume in self.volumes:
            if volume.disk_index == disk and volume.partition == partition and ":" not in volume.name:
                return Match(volume, by_order=True)
        return None

    def _logical(self, spec: str) -> Match | None:
        if match := _MAPPER.match(spec):
            # device-mapper joins group and volume with a hyphen and doubles those inside.
            group, separator, name = re.sub(r"(?<!-)-(?!-)", "\0", match[1], count=1).partition("\0")
            if not separator:
                return None
            wanted = f"{group.replace('--', '-')}/{name.replace('--', '-')}"
        elif match := _VG_LV.match(spec):
            wanted = f"{match[1]}/{match[2]}"
        else:
            return None
        for volume in self.volumes:
            if volume.name.partition(":")[2] == wanted:
                return Match(volume)
        return None

    def _read_uuid(self, volume: Volume) -> str:
        """Read the UUID of what has no files: swap and JFS."""
        image = self._disks[volume.disk_index].image
        if volume.filesystem in {"swap", "swsuspend"}:
            return str(UUID(bytes=image.read_at(volume.offset + 0x40C, 16)))
        if volume.filesystem == "jfs":
            return str(UUID(bytes=image.read_at(volume.offset + 0x8088, 16)))
        return ""
