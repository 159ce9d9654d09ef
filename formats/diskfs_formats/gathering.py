"""What one request reads from its sources: neighbours together, and all ranges of a remote source at once."""

from collections.abc import Sequence
from typing import TypeAlias

from diskfs_formats.extents import Stored
from diskfs_formats.source import Buffer, ByteSource, read_ranges

MERGE_GAP = 4096
"""Stored bytes between two records that are read along rather than asked for apart (markers, grain tables)."""
MAX_MERGED = 16 << 20
"""Stored bytes that one merged read may cover."""

Span: TypeAlias = tuple[ByteSource, int, int]
"""A source, and offset and length of what is read there, in bytes."""


def read_spans(spans: Sequence[Span]) -> list[bytes]:
    """Return the bytes of each span, in the order given; each source is asked for all of its spans at once."""
    if len(spans) == 1:
        source, offset, length = spans[0]
        return [source.read_at(offset, length)]
    by_source: dict[int, list[int]] = {}
    for index, span in enumerate(spans):
        by_source.setdefault(id(span[0]), []).append(index)
    if len(by_source) == 1:
        return read_ranges(spans[0][0], [(offset, length) for _, offset, length in spans])
    found = [b""] * len(spans)
    for indices in by_source.values():
        ranges = [(spans[index][1], spans[index][2]) for index in indices]
        for index, data in zip(indices, read_ranges(spans[indices[0]][0], ranges), strict=True):
            found[index] = data
    return found


class Records:
    """Encoded records of one request: near ones are read together, and cut out of what was read."""

    def __init__(self, stored: Sequence[Stored]) -> None:
        self._stored = stored
        self._groups: list[list[int]] = []
        self.spans: list[Span] = []
        ends: list[int] = []
        for index in sorted(range(len(stored)), key=lambda index: (id(stored[index].source), stored[index].offset)):
            record = stored[index]
            end = record.offset + record.length
            if self._groups:
                first = stored[self._groups[-1][0]]
                near = first.source is record.source and record.offset - ends[-1] <= MERGE_GAP
                if near and max(end, ends[-1]) - first.offset <= MAX_MERGED:
                    self._groups[-1].append(index)
                    ends[-1] = max(end, ends[-1])
                    continue
            self._groups.append([index])
            ends.append(end)
        for group, end in zip(self._groups, ends, strict=True):
            first = stored[group[0]]
            self.spans.append((first.source, first.offset, end - first.offset))

    def cut(self, found: Sequence[bytes]) -> list[Buffer]:
        """Return the records, in the order given, from the bytes of `spans`."""
        records: list[Buffer] = [b""] * len(self._stored)
        for group, (_, offset, _), data in zip(self._groups, self.spans, found, strict=True):
            view = memoryview(data)
            for index in group:
                start = self._stored[index].offset - offset
                records[index] = view[start : start + self._stored[index].length]
        return records
