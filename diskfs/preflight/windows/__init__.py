"""Facts about a Windows installation, from its registry hives, boot stores and files."""

import functools
from typing import TYPE_CHECKING

from diskfs.guest.files import GuestFiles, Volume
from diskfs.preflight.windows.accounts import Account, read_accounts
from diskfs.preflight.windows.boot import WindowsBoot
from diskfs.preflight.windows.network import Network
from diskfs.preflight.windows.readings import SOFTWARE, SYSTEM, Reading, Registry
from diskfs.preflight.windows.services import Services
from diskfs.preflight.windows.servicing import Servicing
from diskfs.preflight.windows.storage import Storage, drive_of
from diskfs.preflight.windows.version import CURRENT_VERSION, WindowsVersion
from diskfs_formats.errors import DiskfsError

if TYPE_CHECKING:
    from diskfs.preflight.facts import Facts

__all__ = ["WindowsFacts", "gather"]

FOLDERS = ("/Windows", "/WINNT")
HIVES = "System32/config"


class WindowsFacts:
    """What is known of one installation; everything is read when it is asked for first, and raises DiskfsError if it
    cannot be. Not for several threads.
    """

    def __init__(self, volume: Volume, files: GuestFiles, folder: str, boot: WindowsBoot) -> None:
        self.volume = volume
        """The system drive."""
        self.files = files
        self.folder = folder
        """`/Windows`."""
        self.boot = boot
        self.registry = Registry(files, f"{folder}/{HIVES}")
        self.version = WindowsVersion(self.registry, files, folder)
        self.services = Services(self.registry)
        self.network = Network(self.registry)
        self.servicing = Servicing(self.registry, files, folder)
        self.storage = Storage(self.registry, files)

    def system(self, path: str, name: str) -> Reading:
        """Return a value of the SYSTEM hive."""
        return self.registry.read(SYSTEM, path, name)

    def software(self, path: str, name: str) -> Reading:
        """Return a value of the SOFTWARE hive."""
        return self.registry.read(SOFTWARE, path, name)

    @functools.cached_property
    def accounts(self) -> tuple[Account, ...]:
        """The local accounts."""
        return tuple(read_accounts(self.registry))

    @property
    def drive(self) -> str:
        """The letter of the system drive as the installation knows it."""
        return drive_of(self.software(CURRENT_VERSION, "SystemRoot").text or "") or "C"

    def __str__(self) -> str:
        return str(self.version)


def gather(facts: "Facts") -> WindowsFacts | None:
    """Find the first installation of Windows on the disks; None if there is none."""
    for volume in facts.volumes:
        for folder in FOLDERS if volume.files is not None else ():
            assert volume.files is not None
            if _has_hives(volume.files, folder):
                return WindowsFacts(volume, volume.files, folder, _boot(facts))
    return None


def _has_hives(files: GuestFiles, folder: str) -> bool:
    try:
        return all(files.entry(f"{folder}/{HIVES}/{name}") is not None for name in (SYSTEM, SOFTWARE))
    except DiskfsError:
        return False


def _boot(facts: "Facts") -> WindowsBoot:
    active = {
        (disk.index, partition.number)
        for disk, table in facts.partition_tables
        for partition in (table.partitions if table is not None else ())
        if partition.bootable
    }
    return WindowsBoot(
        facts.volumes,
        frozenset(volume.name for volume in facts.volumes if (volume.disk_index, volume.partition) in active),
    )
