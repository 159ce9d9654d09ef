"""Reading the registry of an installation by Windows' own paths, with the evidence of what was found."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diskfs.guest.errors import GuestError
from diskfs.guest.files import GuestFiles
from diskfs.guest.registry import Hive, Key, Value, open_hive
from diskfs_formats.errors import DiskfsError

SYSTEM, SOFTWARE, SAM, DEFAULT = "SYSTEM", "SOFTWARE", "SAM", "DEFAULT"
CURRENT = "CurrentControlSet"
MAX_TEXT = 4096
"""Characters of a text that are looked at; a path has at most 260, or a few thousand."""
MAX_SHOWN = 200
"""Characters of one value that are shown as evidence."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value that was asked for: where it is (hive, key, name), and what it is; `value` is None without one."""

    where: str
    name: str
    value: Value | None

    @property
    def exists(self) -> bool:
        return self.value is not None

    @property
    def integer(self) -> int | None:
        return None if self.value is None else self.value.integer

    @property
    def text(self) -> str | None:
        text = None if self.value is None else self.value.text
        return None if text is None else text[:MAX_TEXT]

    @property
    def texts(self) -> tuple[str, ...] | None:
        texts = None if self.value is None else self.value.texts
        return None if texts is None else tuple(text[:MAX_TEXT] for text in texts)

    def __str__(self) -> str:
        """The evidence: `SYSTEM\\ControlSet001\\...: Start is 4`."""
        return f"{self.where}: {self.name or '(default)'} {self._shown()}"

    def _shown(self) -> str:
        if self.value is None:
            return "is not there"
        if self.integer is not None:
            return f"is {self.integer}"
        texts = self.texts
        shown = self.value.data[:MAX_SHOWN].hex(" ") if texts is None else " | ".join(texts[:MAX_SHOWN])
        return f'is "{shown[:MAX_SHOWN]}"' + ("..." if len(shown) > MAX_SHOWN else "")


class Registry:
    """The hives of one installation, each opened when it is asked for first. Not for several threads."""

    def __init__(self, files: GuestFiles, folder: str) -> None:
        """Read the hives in `folder`, such as `/Windows/System32/config`."""
        self._files = files
        self._folder = folder
        self._opened: dict[str, Hive | DiskfsError] = {}

    def hive(self, name: str) -> Hive:
        """Return a hive; raises the same DiskfsError each time if it cannot be opened."""
        if name not in self._opened:
            try:
                self._opened[name] = open_hive_of(self._files, f"{self._folder}/{name}")
            except DiskfsError as error:
                self._opened[name] = error
        found = self._opened[name]
        if isinstance(found, DiskfsError):
            raise found
        return found

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of a hive; that of the default user may be left out."""
        return self._files.entry(f"{self._folder}/{name}") is not None

    @functools.cached_property
    def current_control_set(self) -> str:
        """The name of the control set that Windows boots: `ControlSet001`. Raises GuestError if none is said to be."""
        key = self.hive(SYSTEM).key("Select")
        value = None if key is None else key.value("Current")
        number = None if value is None else value.integer
        if number is None or not 0 < number < 1000:
            shown = "is not there" if number is None else f"is {number}"
            raise GuestError(f"{SYSTEM}\\Select: Current {shown}; expected the number of a control set")
        return f"ControlSet{number:03}"

    def key(self, hive: str, path: str) -> Key | None:
        """Return a key, or None if there is none; `CurrentControlSet` is the one that boots."""
        return self.hive(hive).key(self._resolved(path))

    def read(self, hive: str, path: str, name: str) -> Reading:
        """Return a value and where it was looked for."""
        path = self._resolved(path)
        key = self.hive(hive).key(path)
        return Reading(f"{hive}\\{path}", name, None if key is None else key.value(name))

    def has(self, hive: str, path: str) -> bool:
        """Tell whether there is a key."""
        return self.key(hive, path) is not None

    def where(self, hive: str, path: str) -> str:
        """Return a key's place, as evidence."""
        return f"{hive}\\{self._resolved(path)}"

    def names(self, hive: str, path: str) -> Iterator[str]:
        """Yield the names of the keys below a key."""
        key = self.key(hive, path)
        if key is not None:
            for subkey in key.subkeys():
                yield subkey.name

    @property
    def unclean(self) -> Iterator[str]:
        """Say which hives were not written to their end, of those that the rules read."""
        for name in (SYSTEM, SOFTWARE):
            hive = self.hive(name)
            if hive.unclean:
                taken = "; its transaction logs were taken into account" if hive.replayed else ""
                yield hive.unclean + taken

    def _resolved(self, path: str) -> str:
        if path.startswith(CURRENT):
            return self.current_control_set + path.removeprefix(CURRENT)
        return path


def open_hive_of(files: GuestFiles, path: str) -> Hive:
    """Open a hive of a guest with the transaction logs beside it."""
    source = files.open(path)
    logs = [files.open(log) for log in (f"{path}.LOG1", f"{path}.LOG2") if files.entry(log) is not None]
    return open_hive(source, logs)


def first_text(readings: Sequence[Reading]) -> str:
    """Return the first text among readings, or nothing."""
    return next((reading.text for reading in readings if reading.text), "")
