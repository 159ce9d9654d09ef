"""Text files of a guest, bounded: what is longer or has more lines than any real one is cut, and that is told.

Configuration files are read as UTF-8 with the bytes that are none of it kept visible, since a rule that quotes a line
must not fail for a name in another encoding.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_TEXT = 1 << 20
"""Bytes of one configuration file that are looked at; generated grub.cfg and iptables rules reach some hundred KiB."""
SMALL_TEXT = 64 << 10
"""The same for a file of which a folder may hold many."""
MAX_LINES = 20_000
MAX_LINE = 64 << 10
"""Characters of one line; the kernel's own command line ends at 4,096."""

_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: a file of the guest and a line from 1; line 0 is the file as a whole."""

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


def decode(data: bytes) -> str:
    """Return the text of a file's bytes; what is not UTF-8 becomes `\\x..`."""
    return data.decode("utf-8", "backslashreplace").removeprefix("\ufeff")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end); stops after MAX_LINES, and cuts a line at MAX_LINE."""
    for number, line in enumerate(text.split("\n"), 1):
        if number > MAX_LINES:
            return
        yield number, line[:MAX_LINE].rstrip("\r")


def content_lines(text: str, comments: str = "#") -> Iterator[tuple[int, str]]:
    """Yield the lines that say something, without the white space around them."""
    for number, line in numbered_lines(text):
        stripped = line.strip()
        if stripped and stripped[0] not in comments:
            yield number, stripped


def shell_assignments(text: str) -> dict[str, tuple[str, int]]:
    """Return NAME=value lines as a shell would set them: {name: (value, line)}, the last one of a name wins.

    Quotes are taken off and backslashes before special characters dropped; nothing is expanded.
    """
    found = {}
    for number, line in content_lines(text):
        match = _ASSIGNMENT.match(line)
        if match:
            found[match[1]] = (unquoted(match[2]), number)
    return found


def unquoted(value: str) -> str:
    """Return the first shell word of `value` without its quotes."""
    result, quote, index = [], "", 0
    value = value.strip()
    while index < len(value):
        char = value[index]
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and index + 1 < len(value) and value[index + 1] in '"\\$`':
                index += 1
                result.append(value[index])
            else:
                result.append(char)
        elif char in "\"'":
            quote = char
        elif char.isspace() or (char in ";#" and (char == ";" or index == 0 or value[index - 1].isspace())):
            break
        elif char == "\\" and index + 1 < len(value):
            index += 1
            result.append(value[index])
        else:
            result.append(char)
        index += 1
    return "".join(result)


def ini_sections(text: str) -> Iterator[tuple[str, str, str, int]]:
    """Yield (section, key, value, line) of the files of systemd and NetworkManager; comments are # and ;."""
    section = ""
    for number, line in content_lines(text, "#;"):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif "=" in line:
            key, _, value = line.partition("=")
            yield section, key.strip(), value.strip(), number
