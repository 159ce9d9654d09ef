"""Comparing versions, as RPM does and as the table of supported systems needs it."""

import re

_PIECES = re.compile(r"[0-9]+|[A-Za-z]+|~|\^")
MAX_VERSION = 256


def rpm_key_compare(one: str, two: str) -> int:
    """Compare as rpmvercmp: -1, 0 or 1. Digits are numbers and newer than letters; `~` is older than nothing.

    Specification: RPM's documentation, "Version comparison"; `^` is newer than the end and older than anything else.
    """
    if one == two:
        return 0
    left, right = (_PIECES.findall(text[:MAX_VERSION]) for text in (one, two))
    for index in range(max(len(left), len(right))):
        a = left[index] if index < len(left) else None
        b = right[index] if index < len(right) else None
        if a == b:
            continue
        if "~" in (a, b):
            return -1 if a == "~" else 1
        if a is None or b is None:
            if "^" in (a, b):
                return -1 if a is None else 1
            return -1 if a is None else 1
        if "^" in (a, b):
            return -1 if a == "^" else 1
        if a.isdigit() != b.isdigit():
            return 1 if a.isdigit() else -1
        if a.isdigit():
            numbers = int(a), int(b)
            if numbers[0] != numbers[1]:
                return 1 if numbers[0] > numbers[1] else -1
            continue
        return 1 if a > b else -1
    return 0


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the leading dotted numbers: 3.10.0-1160.el7 gives (3, 10, 0)."""
    match = re.match(r"\d{1,9}(?:\.\d{1,9}){0,7}", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def has_prefix(version: str, prefix: str) -> bool:
    """Tell whether a kernel's release begins with the printed one, number by number: 6.1 fits 6.1.0-18, not 6.12."""
    wanted = numbers_of(prefix)
    return bool(wanted) and numbers_of(version)[: len(wanted)] == wanted
