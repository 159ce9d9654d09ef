"""Shows the result as a table and keeps it as JSON."""

import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchlib.commands import BenchError, first_line
from benchlib.context import Context
from benchlib.pairs import Comparison

HEADINGS = ("bar", "work", "diskfs", "peer", "", "ratio", "wanted", "")
RIGHT_ALIGNED = {2, 4, 5}


def table(comparisons: Sequence[Comparison], failures: Mapping[str, str]) -> str:
    """Return one line per comparison and one per bar that could not be measured."""
    rows = [HEADINGS, *(_row(comparison) for comparison in comparisons)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in RIGHT_ALIGNED else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += [f"{bar_id}: NOT MEASURED: {reason}" for bar_id, reason in failures.items()]
    return "\n".join(lines)


def _row(comparison: Comparison) -> tuple[str, ...]:
    return (
        comparison.bar_id,
        comparison.work,
        comparison.unit.text(statistics.median(comparison.diskfs)),
        comparison.peer_name,
        comparison.unit.text(statistics.median(comparison.peer)),
        f"{comparison.measured:.3f}{comparison.bar.suffix}",
        str(comparison.bar),
        _verdict(comparison),
    )


def _verdict(comparison: Comparison) -> str:
    if not comparison.decides:
        return "(not deciding)"
    return "reached" if comparison.is_reached else "MISSED"


def document(
    context: Context, comparisons: Sequence[Comparison], failures: Mapping[str, str], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the result with every single measurement, for a file; numbers in bytes, seconds, and per second."""
    return {
        "machine": {**machine, "load_after": os.getloadavg()[0]},
        "data": {
            "scale": context.data.scale.name,
            "disk_size": context.data.scale.disk_size,
            "disk_fill": context.data.scale.disk_fill,
            "sparse_size": context.data.scale.sparse_size,
            "sparse_fill": context.data.scale.sparse_fill,
        },
        "pairs": context.pairs,
        "comparisons": [_entry(comparison) for comparison in comparisons],
        "not_measured": dict(failures),
    }


def _entry(comparison: Comparison) -> dict[str, Any]:
    return {
        "bar": comparison.bar_id,
        "work": comparison.work,
        "counts": comparison.unit.name.lower(),
        "diskfs": {"median": statistics.median(comparison.diskfs), "samples": comparison.diskfs},
        "peer": {
            "name": comparison.peer_name,
            "median": statistics.median(comparison.peer),
            "samples": comparison.peer,
        },
        "measured": comparison.measured,
        "wanted": str(comparison.bar),
        "decides": comparison.decides,
        "reached": comparison.is_reached,
    }


def describe_machine(diskfs: Path) -> dict[str, Any]:
    """Say where and with what is measured. A peer that is not installed is named as missing."""
    programs: dict[str, list[str | Path]] = {
        "diskfs": [diskfs, "--version"],
        "qemu": ["qemu-img", "--version"],
        "vmdkmount": ["vmdkmount", "-V"],
        "fio": ["fio", "--version"],
    }
    return {
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": os.getloadavg()[0],
        "programs": {name: _version(command) for name, command in programs.items()},
    }


def _version(command: Sequence[str | Path]) -> str:
    try:
        return first_line(command)
    except BenchError:
        return "missing"


def save(path: Path, result: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n")
