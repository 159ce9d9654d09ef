"""Where the boxes of the page's picture go: each disk a bar, its partitions to scale, the volumes below them.

Lengths are in the picture's own units; what would be too thin to see or to read gets a minimum width, and the rest of
the disk shares what is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diskfs_formats.text import human_size

WIDTH = 960
"""Of a disk's bar."""
MIN_WIDTH = 46
"""Of a partition, so that its number can be read."""
MAX_BOXES = 24
"""Partitions of one disk that are drawn; the page lists them all."""
MIN_GAP_SHARE = 0.005
"""Of the disk that unused space must be to be drawn."""
CHARACTER = 6.6
"""Width of a character of the picture's font."""


@dataclass(frozen=True, slots=True)
class Box:
    """One rectangle with its lines of text, cut to fit; `title` is the whole text, shown under the pointer."""

    x: float
    width: float
    kind: str
    lines: tuple[str, ...]
    title: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One disk: what is drawn in its bar, and in the bar of volumes below it."""

    boxes: tuple[Box, ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class _Span:
    size: int
    kind: str
    lines: tuple[str, ...]
    title: str


def draw_disk(disk: dict[str, Any]) -> Bar:
    """Lay out one disk of the report."""
    spans = list(_spans(disk))
    drawn = spans[:MAX_BOXES]
    widths = _widths([span.size for span in drawn])
    boxes = []
    x = 0.0
    for span, width in zip(drawn, widths, strict=True):
        boxes.append(Box(x, width, span.kind, tuple(_cut(line, width) for line in span.lines), span.title))
        x += width
    return Bar(tuple(boxes), len(spans) - len(drawn))


def _spans(disk: dict[str, Any]) -> Sequence[_Span]:
    total = disk["virtual_size"] or 0
    volumes = disk["volumes"]
    if not disk["partitions"]:
        whole = next((volume for volume in volumes if volume["partition"] is None), None)
        what = (whole["filesystem"] or "unknown") if whole is not None else "no partition table"
        return [_Span(max(total, 1), "volume" if whole is not None else "free", (what,), f"{what}, {total} bytes")]
    spans: list[_Span] = []
    end = 0
    for partition in sorted(disk["partitions"], key=lambda one: (one["offset"], one["number"])):
        if partition["is_container"]:
            continue
        gap = partition["offset"] - end
        if total and gap > total * MIN_GAP_SHARE:
            spans.append(_Span(gap, "free", ("free",), f"free: {gap} bytes at offset {end}"))
        spans.append(_partition(partition, volumes))
        end = max(end, partition["offset"] + partition["size"])
    if total and total - end > total * MIN_GAP_SHARE:
        spans.append(_Span(total - end, "free", ("free",), f"free: {total - end} bytes at offset {end}"))
    return spans


def _partition(partition: dict[str, Any], volumes: Sequence[dict[str, Any]]) -> _Span:
    inside = [volume for volume in volumes if volume["partition"] == partition["number"]]
    names = ", ".join(dict.fromkeys(volume["filesystem"] for volume in inside if volume["filesystem"]))
    size = human_size(partition["size"])
    title = (
        f"partition {partition['number']}: {size} at offset {partition['offset']}, type {partition['type']}"
        + (f", name {partition['name']}" if partition["name"] else "")
        + (f", {names}" if names else "")
    )
    kind = "volume" if names else "unknown"
    return _Span(max(partition["size"], 1), kind, (f"{partition['number']}  {names or '?'}", size), title)


def _widths(sizes: Sequence[int]) -> list[float]:
    """Share the bar by size; spans below the minimum get it, at the expense of the others."""
    small: set[int] = set()
    while True:
        left = WIDTH - MIN_WIDTH * len(small)
        rest = sum(size for index, size in enumerate(sizes) if index not in small) or 1
        more = {index for index, size in enumerate(sizes) if index not in small and size * left / rest < MIN_WIDTH}
        if not more or len(small) + len(more) == len(sizes):
            break
        small |= more
    if MIN_WIDTH * len(sizes) >= WIDTH:
        return [WIDTH / len(sizes)] * len(sizes)
    return [float(MIN_WIDTH) if index in small else max(size * left / rest, 1.0) for index, size in enumerate(sizes)]


def _cut(text: str, width: float) -> str:
    fitting = max(int((width - 10) / CHARACTER), 1)
    return text if len(text) <= fitting else text[: max(fitting - 1, 1)] + "\N{HORIZONTAL ELLIPSIS}"
