"""`diskfs diff`."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json
from diskfs.cli.output import human_size, print_json, print_line, print_table
from diskfs.cli.overlays import add_reopening, reopen

if TYPE_CHECKING:
    from diskfs.disks.opening import OpenedDisk
    from diskfs.disks.overlay import OverlayDisk

MAX_SHOWN = 100
"""Ranges of a disk that are printed for people; --json has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_reopening(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print which ranges an overlay changes."""
    with reopen(options) as opened:
        disks = [
            _described(disk, opened.overlay.disk(disk.index)) for disk in opened.source.disks if disk.opened is not None
        ]
        location = opened.source.location
    if options.json:
        print_json({"overlay": str(options.overlay), "source": location, "disks": disks})
    else:
        _print(str(options.overlay), location, disks)
    return exit_codes.DONE


def _described(disk: "OpenedDisk", changed: "OverlayDisk") -> dict[str, Any]:
    from diskfs.disks.changes import Area, areas_of, changed_ranges

    areas = areas_of(disk)
    outside = Area(None)
    by_number = {area.number: area.changed for area in areas} | {None: outside.changed}
    ranges = []
    for change in changed_ranges(changed, areas):
        by_number[change.partition].add(change)
        ranges.append(asdict(change))
    return {
        "index": disk.index,
        "name": disk.file_name,
        "virtual_size": changed.size,
        "written": sum(area.written for area in by_number.values()),
        "discarded": sum(area.discarded for area in by_number.values()),
        "outside_partitions": asdict(outside.changed),
        "partitions": [
            {"number": area.number, "offset": area.offset, "size": area.size, **asdict(area.changed)} for area in areas
        ],
        "ranges": ranges,
    }


def _print(overlay: str, location: str, disks: list[dict[str, Any]]) -> None:
    print_line(f"{overlay}: changes of {location}")
    for disk in disks:
        written, discarded = human_size(disk["written"]), human_size(disk["discarded"])
        print_line(
            f"disk{disk['index']}: {written} written, {discarded} discarded of {human_size(disk['virtual_size'])}"
        )
        rows = [
            (
                "-" if entry["partition"] is None else f"p{entry['partition']}",
                f"{entry['offset']:#x}",
                f"{entry['length']:#x}",
                entry["kind"],
            )
            for entry in disk["ranges"][:MAX_SHOWN]
        ]
        if rows:
            print_table(("partition", "offset", "length", "kind"), rows, right=(1, 2))
        if len(disk["ranges"]) > MAX_SHOWN:
            print_line(f"... and {len(disk['ranges']) - MAX_SHOWN} ranges more; --json has them all")
