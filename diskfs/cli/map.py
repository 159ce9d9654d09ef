"""`diskfs map`."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_disk, add_json, add_source
from diskfs.cli.output import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    add_disk(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the map of a disk or partition."""
    from diskfs.cli.selection import open_from, select

    with open_from(options) as opened:
        entries = joined(map_entries(select(opened, options.disk, options.partition).extents()))
        if options.json:
            _print_json(entries)
        else:
            _print(entries)
    return exit_codes.DONE


class MapEntry(dict[str, Any]):
    """One entry with qemu-img's keys; `source` is the file that its offset counts in, which no key shows."""

    source: Any = None


def map_entries(extents: Iterable[Any]) -> Iterator[MapEntry]:
    """Turn extents into entries with the keys of `qemu-img map --output=json`."""
    from diskfs_formats.extents import ExtentKind

    for extent in extents:
        stored = extent.stored
        compressed = stored is not None and stored.decode is not None
        entry = MapEntry(
            {
                "start": extent.offset,
                "length": extent.length,
                "depth": extent.depth,
                "present": extent.kind is not ExtentKind.HOLE,
                "zero": extent.kind is not ExtentKind.DATA,
                "data": extent.kind is ExtentKind.DATA,
                "compressed": compressed,
            }
        )
        if stored is not None and not compressed:
            entry["offset"] = stored.offset
            entry.source = stored.source
        yield entry


def joined(entries: Iterable[MapEntry]) -> Iterator[MapEntry]:
    """Join neighbours as qemu-img does: all flags equal and, where they have one, the offset going on in one file."""
    last: MapEntry | None = None
    for entry in entries:
        if last is not None and _goes_on(last, entry):
            last["length"] += entry["length"]
            continue
        if last is not None:
            yield last
        last = entry
    if last is not None:
        yield last


def _goes_on(last: MapEntry, entry: MapEntry) -> bool:
    if any(last[key] != entry[key] for key in ("depth", "present", "zero", "data", "compressed")):
        return False
    if "offset" not in last or "offset" not in entry:
        return ("offset" in last) == ("offset" in entry)
    return last.source is entry.source and bool(last["offset"] + last["length"] == entry["offset"])


def _print_json(entries: Iterable[dict[str, Any]]) -> None:
    """Print entry by entry: the map of a large disk is never held in memory."""
    import json

    sys.stdout.write("[")
    for number, entry in enumerate(entries):
        sys.stdout.write(("," if number else "") + "\n  " + json.dumps(entry))
    sys.stdout.write("\n]\n")


def _print(entries: Iterable[dict[str, Any]]) -> None:
    kinds = {(True, False): "data", (False, True): "zero"}
    rows = []
    for entry in entries:
        kind = kinds[entry["data"], entry["zero"]] if entry["present"] else "hole"
        stored = "compressed" if entry["compressed"] else f"{entry['offset']:#x}" if "offset" in entry else "-"
        rows.append((f"{entry['start']:#x}", f"{entry['length']:#x}", kind, stored))
    print_table(("start", "length", "kind", "stored at"), rows, right=(0, 1))
