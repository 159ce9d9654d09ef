"""GRUB's environment block and the entries of the Boot Loader Specification.

Specifications: GNU GRUB manual, "Environment block": 1,024 bytes, padded with `#`, one NAME=value a line, `\\` before a
newline or backslash of a value. UAPI.1 Boot Loader Specification, type 1; Fedora's blscfg adds variables to its values.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diskfs.preflight.linux.grub_menu import MAX_ENTRIES, MenuEntry
from diskfs.preflight.linux.text import content_lines
from diskfs.preflight.linux.versions import rpm_key_compare

GRUBENV_SIZE = 1024
GRUBENV_SIGNATURE = b"# GRUB Environment Block\n"
MAX_GRUBENV = 64 << 10


@dataclass(frozen=True, slots=True)
class GrubEnvironment:
    """The block at `path`; `problem` is why GRUB would refuse it, empty if it would not."""

    path: str
    values: Mapping[str, str]
    problem: str = ""


def parse_grubenv(data: bytes, path: str) -> GrubEnvironment:
    """Parse the block; never raises. Values are told even where the block's form is wrong."""
    values: dict[str, str] = {}
    text = data[:MAX_GRUBENV].decode("utf-8", "backslashreplace")
    # A backslash keeps the newline after it in the value.
    for line in re.split(r"(?<!\\)\n", text):
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#") and len(values) < 1000:
            values[name.strip()] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    problem = ""
    if not data.startswith(GRUBENV_SIGNATURE):
        problem = "it does not begin with '# GRUB Environment Block'"
    elif len(data) != GRUBENV_SIZE:
        problem = f"it has {len(data)} bytes, expected {GRUBENV_SIZE}"
    return GrubEnvironment(path, values, problem)


@dataclass(frozen=True, slots=True)
class BlsEntry:
    """One file of loader/entries: `id` is its name without .conf."""

    id: str
    path: str
    values: Mapping[str, tuple[str, ...]]
    lines: Mapping[str, int]

    def first(self, key: str) -> str:
        values = self.values.get(key, ())
        return values[0] if values else ""


def parse_bls(text: str, path: str) -> BlsEntry:
    """Parse an entry: a key, blanks, its value; keys may repeat. Never raises."""
    values: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, line in content_lines(text):
        key, *rest = line.split(None, 1)
        if len(values) < 100:
            values[key] = (*values.get(key, ())[:16], rest[0].strip() if rest else "")
            lines.setdefault(key, number)
    return BlsEntry(path.rpartition("/")[2].removesuffix(".conf"), path, values, lines)


def sorted_bls(entries: Sequence[BlsEntry]) -> list[BlsEntry]:
    """Return the entries as blscfg shows them: the newest first, by the versions in their file names."""
    return sorted(entries, key=functools.cmp_to_key(_newest_first))[:MAX_ENTRIES]


def _newest_first(one: BlsEntry, two: BlsEntry) -> int:
    # blscfg splits name-version-release and compares each as RPM does; comparing all of it does the same for ids that
    # begin with one machine's id.
    return rpm_key_compare(two.id, one.id) or (one.id < two.id) - (one.id > two.id)


def bls_menu(entries: Sequence[BlsEntry], variables: Mapping[str, str]) -> list[MenuEntry]:
    """Return the entries as a menu; `$kernelopts` and other variables in their values are filled in."""
    menu = []
    for entry in sorted_bls(entries):
        options = " ".join(entry.values.get("options", ()))
        kernel = _filled(entry.first("linux"), variables)
        initrds = tuple(word for value in entry.values.get("initrd", ()) for word in _filled(value, variables).split())
        menu.append(
            MenuEntry(
                entry.first("title") or entry.id, entry.id, 0, entry.path, kernel,
                _filled(options, variables), initrds, kernel_line=entry.lines.get("options", 0),
            )
        )  # fmt: skip
    return menu


def _filled(value: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?", lambda match: variables.get(match[1], ""), value)[
        : 16 << 10
    ].strip()
