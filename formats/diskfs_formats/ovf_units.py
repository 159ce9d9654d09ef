"""Numbers of an OVF descriptor: whole numbers, and capacities in the units that they are counted in.

Specification: DMTF DSP0243 1.1.1 and 2.1.1, Open Virtualization Format. Sizes in bytes.
"""

import re
from collections.abc import Mapping

MAX_CAPACITY = 1 << 63
"""Bytes; a larger capacity is taken as unknown. The disk's own header decides its size anyway."""


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20


_UNITS = re.compile(r"bytes?(?P<factors>(?:\*\d{1,13}(?:\^\d{1,2})?)*)")
_WORDS: Mapping[str, int] = {
    word: 1 << (10 * power)
    for power, words in enumerate(
        (
            ("kb", "kib", "kilobyte", "kilobytes"),
            ("mb", "mib", "megabyte", "megabytes"),
            ("gb", "gib", "gigabyte", "gigabytes"),
            ("tb", "tib", "terabyte", "terabytes"),
        ),
        start=1,
    )
    for word in words
}


def unit_size(text: str | None) -> int | None:
    """Return the bytes that one unit of `capacityAllocationUnits` stands for, or None if it is not understood.

    `byte`, `byte * 2^20`, `byte*1024*1024`; words such as `MegaBytes` are powers of two, as their writers mean them.
    """
    if text is None:
        return 1
    compact = "".join(text.split()).lower()
    match = _UNITS.fullmatch(compact)
    if match is None:
        return _WORDS.get(compact)
    size = 1
    for factor in match["factors"].split("*")[1:]:
        base, _, exponent = factor.partition("^")
        size *= int(base) ** int(exponent or 1)
        if not 0 < size <= MAX_CAPACITY:
            return None
    return size


def capacity_in_bytes(text: str, units: str | None) -> int | None:
    unit = unit_size(units)
    if unit is None or not is_number(text) or not 0 < int(text) * unit <= MAX_CAPACITY:
        return None
    return int(text) * unit
