"""GRUB 0.97's menu: menu.lst, or grub.conf as Red Hat calls it.

Specification: GNU GRUB Legacy manual, "Writing your own configuration file": one command a line, `=` or a blank before
its value; `title` begins an entry.
"""

import re
from dataclasses import dataclass, field

from diskfs.preflight.linux.grub_menu import MAX_ENTRIES, MenuEntry, device_free
from diskfs.preflight.linux.text import content_lines

_COMMAND = re.compile(r"([A-Za-z_]+)\s*(?:=|\s)\s*(.*)")


@dataclass(slots=True)
class LegacyMenu:
    """The menu; `default` is an entry's number, or `saved`, whose number stands in the file `default` beside it."""

    entries: list[MenuEntry] = field(default_factory=list)
    default: str = "0"
    default_line: int = 0
    timeout: str = ""
    has_password: bool = False


def parse_legacy(text: str, path: str) -> LegacyMenu:
    """Parse the file; never raises."""
    menu = LegacyMenu()
    entry: dict[str, object] | None = None

    def finish() -> None:
        if entry is not None and len(menu.entries) < MAX_ENTRIES:
            menu.entries.append(MenuEntry(**entry))  # type: ignore[arg-type]  # the names below are its fields

    for number, line in content_lines(text):
        match = _COMMAND.match(line)
        if match is None:
            continue
        command, value = match[1].lower(), match[2].strip()
        if command == "title":
            finish()
            entry = {"title": value[:1000], "id": value[:1000], "line": number, "path": path}
        elif entry is None:
            if command == "default":
                menu.default, menu.default_line = value, number
            elif command == "timeout":
                menu.timeout = value
            elif command == "password":
                menu.has_password = True
        elif command in {"kernel", "module"} and "kernel" not in entry:
            words = [word for word in value.split() if not word.startswith("--")]
            kernel = words[0] if words else ""
            if kernel.rpartition("/")[2].partition(".")[0].partition("-")[0] == "xen":
                continue  # The hypervisor; its first module is the kernel.
            entry.update(kernel=device_free(kernel), options=" ".join(words[1:]), kernel_line=number)
        elif command in {"initrd", "module"}:
            entry["initrds"] = (*entry.get("initrds", ()), *(device_free(word) for word in value.split()[:4]))  # type: ignore[misc]  # paths
        elif command == "chainloader":
            entry["chainloads"] = value
    finish()
    return menu


def select_legacy(menu: LegacyMenu, saved: str | None) -> MenuEntry | None:
    """Return the default entry; `saved` is the text of the file `default`, for `default saved`."""
    spec = menu.default.split()[0] if menu.default.split() else "0"
    if spec == "saved":
        spec = (saved or "0").strip().split("\n", 1)[0].strip()
    number = int(spec) if spec.isascii() and spec.isdigit() and len(spec) < 6 else 0
    if not menu.entries:
        return None
    return menu.entries[number] if number < len(menu.entries) else menu.entries[0]
