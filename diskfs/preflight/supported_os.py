"""The operating systems that the service lists, as data (`data/supported-os.toml`), and whether one is among them.

Versions and kernels are compared by their leading numbers: 3.10.0 takes in 3.10.0-1160.el7, 6.1 takes in 6.1.0-18.
Ranges include both ends.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from diskfs.preflight.rules.catalogue import load


@dataclass(frozen=True, slots=True)
class KernelGroup:
    """Kernels of one kind, such as Oracle's UEK; `suffix` is part of the release's name, `el9uek`."""

    type: str
    kernels: tuple[str, ...]
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class LinuxRow:
    """One line of the guide's table: a version, or a range of them, and its kernels."""

    printed: str
    minimum: str | None
    maximum: str | None
    exact: str | None
    major: str | None
    service_packs: tuple[int, ...] | None
    """Those that the row is for, 0 for none; None where the system has no service packs."""
    groups: tuple[KernelGroup, ...]
    kernels_excluded: tuple[str, ...] = ()
    later: bool = False
    """Only an edition of the guide after July 2025 lists it."""

    def covers(self, version: str, service_pack: int | None = None) -> bool:
        """Tell whether the row is about this version."""
        if self.service_packs is not None and (service_pack or 0) not in self.service_packs:
            return False
        numbers = _numbers(version)
        if self.exact is not None:
            return starts_with(version, self.exact)
        if self.major is not None:
            return numbers[:1] == _numbers(self.major)
        if self.minimum is None or self.maximum is None:
            return True
        low, high = _numbers(self.minimum), _numbers(self.maximum)
        return low <= _padded(numbers, len(low)) and _padded(numbers, len(high))[: len(high)] <= high

    def takes_kernel(self, release: str) -> bool:
        """Tell whether the row lists this kernel: the output of `uname -r`."""
        if any(_is_release_of(release, excluded) for excluded in self.kernels_excluded):
            return False
        return any(
            (not group.kernels or any(starts_with(release, kernel) for kernel in group.kernels))
            and group.suffix in release
            for group in self.groups
        )

    @property
    def kernels(self) -> str:
        """The listed kernels, for people."""
        return ", ".join(
            f"{group.type} {text}".strip()
            for group in self.groups
            for text in ([f"{one} {group.suffix}".strip() for one in group.kernels] or [group.suffix])
        )


@dataclass(frozen=True, slots=True)
class LinuxSystem:
    """A distribution: its `ID` in os-release, and the rows of the table. `version_ids` tell two of one ID apart."""

    id: str
    name: str
    os_release_id: str
    version_ids: tuple[str, ...]
    rows: tuple[LinuxRow, ...]

    def rows_for(self, version: str, service_pack: int | None = None) -> tuple[LinuxRow, ...]:
        """Return the rows about a version; none means that it is not listed."""
        return tuple(row for row in self.rows if row.covers(version, service_pack))


@dataclass(frozen=True, slots=True)
class WindowsSystem:
    """One line of the guide's table of Windows versions."""

    id: str
    name: str
    is_server: bool
    editions: tuple[str, ...]
    bits: tuple[int, ...]
    non_default_regions: bool
    footnotes: tuple[int, ...]
    nt: str
    builds: tuple[int, ...]
    build_min: int | None
    build_max: int | None
    product_name_contains: str
    min_service_pack: int

    def has_build(self, build: int) -> bool:
        """Tell whether a build number belongs to this version."""
        if self.builds:
            return build in self.builds
        return (self.build_min or 0) <= build <= (self.build_max if self.build_max is not None else build)


@functools.cache
def linux_systems() -> tuple[LinuxSystem, ...]:
    """Return the distributions in the guide's order."""
    return tuple(
        LinuxSystem(
            id=entry["id"],
            name=entry["name"],
            os_release_id=entry["os_release_id"],
            version_ids=tuple(entry.get("version_ids", ())),
            rows=tuple(_row(row) for row in entry["row"]),
        )
        for entry in load("supported-os.toml")["linux"]
    )


@functools.cache
def windows_systems() -> tuple[WindowsSystem, ...]:
    """Return the versions of Windows in the guide's order."""
    return tuple(
        WindowsSystem(
            id=entry["id"],
            name=entry["name"],
            is_server=entry["type"] == "server",
            editions=tuple(entry["editions"]),
            bits=tuple(entry["bits"]),
            non_default_regions=entry["non_default_regions"],
            footnotes=tuple(entry["footnotes"]),
            nt=entry["nt"],
            builds=tuple(entry.get("builds", ())),
            build_min=entry.get("build_min"),
            build_max=entry.get("build_max"),
            product_name_contains=entry.get("product_name_contains", ""),
            min_service_pack=entry.get("min_service_pack", 0),
        )
        for entry in load("supported-os.toml")["windows"]
    )


@functools.cache
def windows_editions() -> Mapping[str, tuple[str, ...]]:
    """Return the EditionID values of the registry for each edition that the guide prints."""
    return MappingProxyType(
        {edition: tuple(ids) for edition, ids in load("supported-os.toml")["windows_editions"].items()}
    )


@functools.cache
def regions_without(rule_id: str) -> frozenset[str]:
    """Return the Regions that the footnote behind a rule (VMIE-OS-13, VMIE-OS-14) excludes."""
    for footnote in load("supported-os.toml")["footnote"]:
        if footnote["rule"] == rule_id:
            return frozenset(footnote.get("unsupported_regions", ()))
    return frozenset()


def starts_with(version: str, printed: str) -> bool:
    """Tell whether a version or kernel release begins with the printed numbers: 6.1.0-18 does with 6.1."""
    wanted = _numbers(printed)
    return _padded(_numbers(version), len(wanted))[: len(wanted)] == wanted


def _is_release_of(release: str, printed: str) -> bool:
    return re.match(re.escape(printed) + r"(?![0-9])", release) is not None


def _row(entry: Mapping[str, Any]) -> LinuxRow:
    groups: Sequence[Mapping[str, Any]] = entry.get("kernel_group", ())
    packs = entry.get("service_packs")
    return LinuxRow(
        printed=entry["printed"],
        minimum=entry.get("min"),
        maximum=entry.get("max"),
        exact=entry.get("exact"),
        major=entry.get("major"),
        service_packs=None if packs is None else tuple(packs),
        groups=tuple(KernelGroup(one["type"], tuple(one["kernels"]), one.get("suffix", "")) for one in groups)
        or (KernelGroup("", tuple(entry["kernels"])),),
        kernels_excluded=tuple(entry.get("kernels_excluded", ())),
        later=entry.get("later", False),
    )


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,7}", text.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _padded(numbers: tuple[int, ...], count: int) -> tuple[int, ...]:
    return numbers + (0,) * (count - len(numbers))
