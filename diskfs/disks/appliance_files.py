"""The files of an appliance, for a disk of it that is in several of them or that has a parent among them."""

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from diskfs.sources.locate import MAX_CHAIN, require_bare_name
from diskfs_formats.driver import AbsentParent, DiskImage, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, ParentUnavailable
from diskfs_formats.registry import detect, driver_named
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diskfs_formats.ova import Appliance
    from diskfs_formats.ova_disks import ApplianceDisk


class ApplianceFiles:
    """What a disk of an appliance may open: the members in its own folder and, as its parent, the disk that the
    descriptor's `parentRef` names.

    `beside` are the files of an .ovf's folder that the descriptor does not list; an archive has none. `chain` are the
    disks that lead here, by their files' names.
    """

    def __init__(
        self,
        appliance: "Appliance",
        file_name: str,
        parent_ref: str = "",
        *,
        beside: RelatedFiles | None = None,
        allow_missing: bool = False,
        chain: tuple[str, ...] = (),
    ) -> None:
        self._appliance = appliance
        self._file_name = file_name
        self._parent_ref = parent_ref
        self._beside = beside
        self._allow_missing = allow_missing
        self._chain = (*chain, file_name)

    def open(self, file_name: str, /) -> ByteSource:
        require_bare_name(file_name)
        member = str(PurePosixPath(self._file_name).with_name(file_name))
        for name, source in self._appliance.members:
            if name == member:
                return source
        if self._beside is not None:
            return self._beside.open(file_name)
        raise ParentUnavailable(
            f"{self._appliance.name}:{printable(self._file_name)}: {printable(file_name)!r} is needed and is not in "
            "the appliance"
        )

    def open_parent(self, file_names: "Sequence[str]", format_name: str | None, /) -> DiskImage:
        try:
            return self._open_parent(file_names, format_name)
        except ParentUnavailable:
            if self._allow_missing:
                return AbsentParent()
            raise

    def _open_parent(self, file_names: "Sequence[str]", format_name: str | None) -> DiskImage:
        if len(self._chain) > MAX_CHAIN:
            raise CorruptImage(f"{self._appliance.name}: the chain of parents is over {MAX_CHAIN} files long")
        described = self._described(file_names)
        if described is None:
            source, file_name, parent_ref = *self._named(file_names), ""
        else:
            source, file_name, parent_ref = described.open(), described.file_name, described.parent_ref
        try:
            if file_name in self._chain:
                raise CorruptImage(f"{source.name}: the chain of parents comes back to this file")
            window = ProbeWindow.of(source)
            driver = driver_named(format_name or detect(window, source.name), source.name)
            if format_name is not None and driver.probe(window) is Match.NO:
                raise ParentUnavailable(f"{source.name}: the parent is not a {format_name} image, as its child says")
            related = ApplianceFiles(
                self._appliance,
                file_name,
                parent_ref,
                beside=self._beside,
                allow_missing=self._allow_missing,
                chain=self._chain,
            )
            return driver.open(source, related)
        except BaseException:
            source.close()
            raise

    def _described(self, file_names: "Sequence[str]") -> "ApplianceDisk | None":
        """Return the disk that `parentRef` names or, without one, the disk whose file has one of the names."""
        for disk in self._appliance.disks:
            is_meant = (
                disk.disk_id == self._parent_ref
                if self._parent_ref
                else PurePosixPath(disk.file_name).name in file_names and disk.file_name != self._file_name
            )
            if is_meant:
                return disk
        if self._parent_ref:
            raise ParentUnavailable(
                f"{self._appliance.name}:{printable(self._file_name)}: the descriptor's parentRef "
                f"{printable(self._parent_ref)!r} is no disk of the appliance"
            )
        return None

    def _named(self, file_names: "Sequence[str]") -> tuple[ByteSource, str]:
        for name in file_names:
            try:
                return self.open(name), str(PurePosixPath(self._file_name).with_name(name))
            except ParentUnavailable:
                continue
        wanted = " or ".join(repr(printable(name)) for name in file_names) or "which it does not name,"
        raise ParentUnavailable(
            f"{self._appliance.name}:{printable(self._file_name)}: its parent {wanted} is not in the appliance"
        )
