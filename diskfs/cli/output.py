"""How results and errors are printed."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from diskfs_formats.text import human_size, printable

__all__ = ["human_size", "output_is_closed", "print_error", "print_json", "print_line", "print_table"]


def output_is_closed() -> bool:
    """Tell whether the process was started without a standard output: what is written there now goes nowhere."""
    return sys.__stdout__ is None


def print_json(document: object) -> None:
    """Print one JSON document; ASCII only, so that no name from an image acts on a terminal."""
    import json

    json.dump(document, sys.stdout, indent=2, ensure_ascii=True)
    sys.stdout.write("\n")


def print_error(message: str) -> None:
    """Print one line on standard error."""
    sys.stderr.write(f"diskfs: {printable(' '.join(message.split()), 4000)}\n")


def print_line(text: str = "") -> None:
    """Print one line of a result, escaped."""
    sys.stdout.write(printable(text, 4000) + "\n")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[int] = ()) -> None:
    """Print aligned columns; those numbered in `right` are aligned to the right. Cells are escaped."""
    to_the_right = set(right)
    cells = [tuple(heads), *(tuple(printable(str(cell)) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if column in to_the_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        sys.stdout.write(line.rstrip() + "\n")
