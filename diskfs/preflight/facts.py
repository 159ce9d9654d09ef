"""The facts about an image, each gathered once, when a rule asks for it first.

A fact that cannot be gathered raises the same DiskfsError every time it is asked for, so that the rules that need it
become `unknown` and the others go on. Not for several threads.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from diskfs.disks.opening import OpenedDisk, OpenedSource
from diskfs.preflight.request import Operation, Request
from diskfs.sources.locations import file_name, shown
from diskfs_formats.errors import DiskfsError, UnsupportedFeature
from diskfs_formats.partitions import PartitionTable
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

if TYPE_CHECKING:
    from diskfs.guest.volumes import Volumes
    from diskfs.preflight.boot import BootFacts
    from diskfs.preflight.container import DiskFile
    from diskfs.preflight.linux import LinuxFacts
    from diskfs.preflight.windows import WindowsFacts

T = TypeVar("T")


class fact(Generic[T]):  # noqa: N801 - used as functools.cached_property is
    """A property that is computed once; an error of ours is kept too, and raised again."""

    def __init__(self, gather: Callable[[Any], T]) -> None:
        self._gather = gather
        self.__doc__ = gather.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"fact {name}"

    @overload
    def __get__(self, instance: None, owner: type) -> "fact[T]": ...
    @overload
    def __get__(self, instance: "Facts", owner: type) -> T: ...
    def __get__(self, instance: "Facts | None", owner: type) -> "T | fact[T]":
        if instance is None:
            return self
        known: dict[str, Any] = instance.__dict__
        if self._key not in known:
            try:
                known[self._key] = self._gather(instance)
            except DiskfsError as error:
                known[self._key] = _Failure(error)
        value = known[self._key]
        if isinstance(value, _Failure):
            raise value.error
        result: T = value
        return result


class _Failure:
    def __init__(self, error: DiskfsError) -> None:
        self.error = error


class Facts:
    """What is known about a source, for one request. Close it when done; `diskfs.preflight.opening` makes it.

    `opening_error` is why the source could not be opened, if so; `stored` is then its file as it is.
    """

    def __init__(
        self,
        request: Request,
        location: str,
        opened: OpenedSource | None,
        *,
        opening_error: DiskfsError | None = None,
        stored: ByteSource | None = None,
        deep: bool = False,
    ) -> None:
        self.request = request
        self.location = shown(location)
        self.is_presigned = "signature=" in location.lower()
        """Whether the location is a URL with a signature, which is not shown."""
        self.opening_error = opening_error
        self.deep = deep
        """Whether a rule may read all of the image."""
        self._opened = opened
        self._stored = stored

    def close(self) -> None:
        """End the reading of file systems, and close the source; nothing may be gathered any more."""
        found = self.__dict__.get("fact volumes")
        if found is not None and not isinstance(found, _Failure):
            found.close()
        if self._opened is not None:
            self._opened.close()
        if self._stored is not None:
            self._stored.close()

    def for_operation(self, operation: Operation) -> "Facts":
        """Return these facts for another operation; what is gathered already is kept. They are not to be closed."""
        other = Facts.__new__(Facts)
        other.__dict__.update(self.__dict__)
        other.request = dataclasses.replace(self.request, operation=operation)
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def source(self) -> OpenedSource:
        """The opened source; raises the DiskfsError for which it could not be opened."""
        if self._opened is None:
            raise self.opening_error or UnsupportedFeature("the source is not open")
        return self._opened

    @property
    def disks(self) -> Sequence[OpenedDisk]:
        """The disks in the order the service gets them; `partition_table` of each is read once."""
        return self.source.disks

    @functools.cached_property
    def files(self) -> "Sequence[DiskFile]":
        """The file of each disk as the service would get it; what a disk's own bytes say needs no opened disk."""
        from diskfs.preflight.container import DiskFile  # noqa: PLC0415 - loads the formats

        if self._opened is None:
            return (DiskFile(0, file_name(self.location), self._stored, None, self.opening_error),)
        return tuple(
            DiskFile(disk.index, printable(disk.file_name), disk.stored, disk, disk.error)
            for disk in self._opened.disks
        )

    @property
    def container(self) -> str | None:
        """`ova`, `ovf`, or None for a single image."""
        return self._opened.container if self._opened is not None else None

    @fact
    def partition_tables(self) -> Sequence[tuple[OpenedDisk, PartitionTable | None]]:
        """Each disk with its partition table; raises for a disk that cannot be opened."""
        return tuple((disk, disk.partition_table) for disk in self.disks)

    @fact
    def volumes(self) -> "Volumes":
        """Every partition, logical volume or whole disk that may hold a file system, readable as files."""
        from diskfs.guest.volumes import volumes  # noqa: PLC0415 - the readers of file systems are slow to load

        return volumes(self.source)

    @fact
    def linux(self) -> "LinuxFacts | None":
        """What the Linux system on the disks is like; None if there is none."""
        facts: LinuxFacts | None = _gather("linux", self)
        return facts

    @fact
    def windows(self) -> "WindowsFacts | None":
        """What the Windows system on the disks is like; None if there is none."""
        facts: WindowsFacts | None = _gather("windows", self)
        return facts

    @fact
    def boot(self) -> "BootFacts":
        """What firmware would find: MBR, GPT, EFI system partition, loaders."""
        facts: BootFacts = _gather("boot", self)
        return facts

    @functools.cached_property
    def guests(self) -> frozenset[str]:
        """`linux`, `windows`, both or neither. Raises nothing: see `guest_error`."""
        found = set()
        self.guest_error: DiskfsError | None = None
        for name in ("linux", "windows"):
            try:
                if getattr(self, name) is not None:
                    found.add(name)
            except DiskfsError as error:
                self.guest_error = error
        if not found and self.guest_error is None:
            self.guest_error = self._unread_volume()
        return frozenset(found)

    def _unread_volume(self) -> DiskfsError | None:
        """Return why a volume that may hold the system could not be looked into, if there is one."""
        from diskfs.guest.errors import GuestError  # noqa: PLC0415 - as above

        try:
            for volume in self.volumes:
                if volume.problem:
                    return GuestError(f"not all volumes could be looked into: {volume.name}: {volume.problem}")
        except DiskfsError as error:
            return error
        return None


def _gather(name: str, facts: Facts) -> Any:
    # Loaded when asked for: an image that no rule looks into costs none of it.
    return import_module(f"diskfs.preflight.{name}").gather(facts)
