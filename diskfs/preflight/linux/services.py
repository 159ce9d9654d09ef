"""Which services a guest starts: systemd's units and their links, System V's rc links, upstart's jobs."""

import re
from dataclasses import dataclass

from diskfs.preflight.linux.text import Place
from diskfs.preflight.linux.tree import GuestTree

UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
MAX_FOLDERS = 200
"""Folders of links in one place that are looked into."""
RC_FOLDERS = tuple(
    folder.format(level) for level in (3, 5, 2) for folder in ("/etc/rc{}.d", "/etc/rc.d/rc{}.d", "/etc/init.d/rc{}.d")
)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """How a service stands. `evidence` is the link or file that decides."""

    is_installed: bool
    is_enabled: bool
    is_masked: bool
    evidence: Place | None = None


class Services:
    """The services of one guest; each folder of links is listed once."""

    def __init__(self, tree: GuestTree) -> None:
        self._tree = tree
        self._wanted: dict[str, str] | None = None
        self._rc: dict[str, str] | None = None

    def state(self, *names: str) -> ServiceState:
        """Return the best state of a service that has several names, such as ssh and sshd; units without suffix too."""
        states = [self._state(name) for name in names]
        return max(states, key=lambda one: (one.is_enabled, one.is_masked, one.is_installed))

    def enabled_links(self) -> dict[str, str]:
        """Return {unit: path of the link that starts it}."""
        if self._wanted is None:
            self._wanted = {}
            for base in UNIT_FOLDERS:
                folders = [one for one in self._tree.entries(base) if one.name.endswith((".wants", ".requires"))]
                for folder in folders[:MAX_FOLDERS]:
                    for entry in self._tree.entries(f"{base}/{folder.name}"):
                        self._wanted.setdefault(entry.name, f"{base}/{folder.name}/{entry.name}")
        return self._wanted

    def rc_links(self) -> dict[str, str]:
        """Return {script: path of the S link that starts it}."""
        if self._rc is None:
            self._rc = {}
            for folder in RC_FOLDERS:
                for entry in self._tree.entries(folder):
                    match = re.fullmatch(r"S\d\d(.+)", entry.name)
                    if match:
                        self._rc.setdefault(match[1], f"{folder}/{entry.name}")
        return self._rc

    def _state(self, name: str) -> ServiceState:
        units = [name] if "." in name else [f"{name}.service", f"{name}.socket"]
        installed: Place | None = None
        for unit in units:
            path = f"/etc/systemd/system/{unit}"
            if self._tree.is_masked(path):
                return ServiceState(True, False, True, Place(path))
            link = self.enabled_links().get(unit)
            if link is not None and self._tree.exists(link):
                return ServiceState(True, True, False, Place(link))
            for folder in UNIT_FOLDERS:
                if installed is None and self._tree.exists(f"{folder}/{unit}"):
                    installed = Place(f"{folder}/{unit}")
        base = name.partition(".")[0]
        # Where a native unit is there, the System V script of the same name is not looked at by systemd.
        if installed is None:
            link = self.rc_links().get(base)
            if link is not None:
                return ServiceState(True, True, False, Place(link))
            job = f"/etc/init/{base}.conf"
            text = self._tree.text(job)
            if text is not None:
                override = self._tree.text(f"/etc/init/{base}.override") or ""
                is_started = bool(re.search(r"^\s*start on", text, re.MULTILINE)) and "manual" not in override.split()
                return ServiceState(True, is_started, False, Place(job))
            if self._tree.exists(f"/etc/init.d/{base}"):
                installed = Place(f"/etc/init.d/{base}")
        return ServiceState(installed is not None, False, False, installed)
