"""GRUB's menu, whichever language it was written in: entries, and which of them is booted by default."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from diskfs.preflight.linux.text import content_lines, decode

MAX_ENTRIES = 2_000
MAX_DEPTH = 20
"""Submenus within submenus."""
STUB_SIZE = 2048
_STUB_COMMANDS = re.compile(
    r"(?:search|set|configfile|normal|insmod|export|if|then|elif|else|fi|echo|\[|source|regexp|probe|exit)\b|\[|[a-z_]+="
)


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """An entry of the menu: a system to boot, or a submenu with `children`. `line` is 0 for one of a BLS file."""

    title: str
    id: str = ""
    line: int = 0
    path: str = ""
    """The file that it stands in."""
    kernel: str = ""
    options: str = ""
    initrds: tuple[str, ...] = ()
    children: "tuple[MenuEntry, ...]" = ()
    is_submenu: bool = False
    chainloads: str = ""
    """What a chainloader command in it starts."""
    kernel_line: int = 0


@dataclass(slots=True)
class GrubMenu:
    """The outcome of running a configuration. `default` is the raw value, as `1>2`, an id or a title."""

    entries: list[MenuEntry] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    default_lines: list[int] = field(default_factory=list)
    """The lines that set `default`."""
    default_from_saved: bool = False
    """`default` was set from saved_entry (or next_entry), at whichever line did so last."""
    uses_blscfg: bool = False
    blscfg_line: int = 0
    configfiles: list[tuple[str, int]] = field(default_factory=list)
    """What `configfile` leads to, with its line."""
    searched_uuids: list[str] = field(default_factory=list)
    timeout: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def default(self) -> str:
        return self.variables.get("default", "")


def select_default(menu: GrubMenu) -> MenuEntry | None:
    """Return the entry that is booted without a key being pressed; as GRUB, the first where `default` names none."""
    return select(menu.entries, menu.default)


def select(entries: Sequence[MenuEntry], spec: str) -> MenuEntry | None:
    """Follow a specification such as `Advanced options>1` through submenus."""
    chosen: MenuEntry | None = None
    level = list(entries)
    first, rest = _split_spec(spec)
    for _ in range(MAX_DEPTH):
        if not level:
            return chosen
        chosen = _find(level, first) or level[0]
        if not chosen.is_submenu:
            return chosen
        level = list(chosen.children)
        first, rest = _split_spec(rest)
    return chosen


def matches(entries: Sequence[MenuEntry], spec: str) -> bool:
    """Tell whether `spec` names an entry, rather than falling back on the first."""
    level = list(entries)
    while spec:
        first, spec = _split_spec(spec)
        found = _find(level, first)
        if found is None:
            return False
        level = list(found.children)
    return True


def _split_spec(spec: str) -> tuple[str, str]:
    """Split at the first `>`; `>>` is one that belongs to a title."""
    index = 0
    while (index := spec.find(">", index)) >= 0:
        if spec.startswith(">>", index):
            index += 2
            continue
        return spec[:index].replace(">>", ">"), spec[index + 1 :]
    return spec.replace(">>", ">"), ""


def _find(level: Sequence[MenuEntry], spec: str) -> MenuEntry | None:
    if spec.isascii() and spec.isdigit() and len(spec) < 6:
        return level[int(spec)] if int(spec) < len(level) else None
    return next((entry for entry in level if spec and spec in {entry.id, entry.title}), None)


def is_stub(data: bytes) -> bool:
    """Tell whether a configuration does no more than to find and start another one."""
    if len(data) > STUB_SIZE:
        return False
    lines = [line for _, line in content_lines(decode(data))]
    return any(line.split()[0] in {"configfile", "source"} for line in lines) and all(
        _STUB_COMMANDS.match(line) for line in lines
    )


def device_free(path: str) -> str:
    """Return a path of GRUB's without its device: `(hd0,gpt2)/boot/vmlinuz` is /boot/vmlinuz there."""
    return path.partition(")")[2] if path.startswith("(") else path
