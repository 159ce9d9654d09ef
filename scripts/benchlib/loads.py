"""The loads that are put on a mounted file, and what each measures."""

import json
import random
from pathlib import Path

from benchlib.commands import BenchError, run

COMPARED_PIECES = 32
COMPARED_PIECE_SIZE = 1 << 16

FIRST_SEED = 10_007
"""fio multiplies the seed by the number of the job: with small seeds two jobs of two pairs would read alike."""


def sequential_read(path: Path, *, direct: bool = False) -> float:
    """Read all of `path` with `dd bs=1M`; return bytes per second."""
    flags = ["iflag=direct"] if direct else []
    finished = run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none", *flags])
    return path.stat().st_size / finished.seconds


def random_reads(path: Path, *, jobs: int, seconds: float, pair: int) -> float:
    """Read 4 KiB at random places with O_DIRECT; return reads per second of all jobs together.

    Both sides of a pair read the same places, and every pair others: a server cannot have kept them.
    """
    options = {
        "name": "random",
        "filename": str(path).replace(":", "\\:"),
        "ioengine": "psync",
        "rw": "randread",
        "bs": "4k",
        "direct": "1",
        "numjobs": str(jobs),
        "runtime": f"{seconds:g}",
        "randrepeat": "0",  # Left on, it puts a constant in the place of the seed.
        "randseed": str(FIRST_SEED + pair),
        "output-format": "json",
    }
    switches = [
        "--readonly",
        "--time_based",
        "--norandommap",
        "--group_reporting",
    ]
    finished = run(["fio", *switches, *(f"--{name}={value}" for name, value in options.items())])
    report = json.loads(finished.stdout[finished.stdout.index("{") :])  # fio prints its warnings before the report.
    return float(report["jobs"][0]["read"]["iops"])


def writes(path: Path, rw: str, *, jobs: int, seconds: float, size: int, pair: int, count: int | None = None) -> float:
    """Write with O_DIRECT and one fsync at the end; return bytes per second of `write` (1 MiB each), or writes per
    second of `randwrite` (4 KiB each, for `seconds`, or `count` of them), the fsync included.
    """
    sequential = rw == "write"
    options = {
        "name": "writes",
        "filename": str(path).replace(":", "\\:"),
        "ioengine": "psync",
        "rw": rw,
        "bs": "1m" if sequential else "4k",
        "direct": "1",
        "numjobs": str(jobs),
        "end_fsync": "1",
        "randrepeat": "0",
        "randseed": str(FIRST_SEED + pair),
        "output-format": "json",
    }
    switches = ["--group_reporting", "--allow_file_create=0"]
    if sequential:
        options["size"] = str(size)
    elif count is not None:
        options["number_ios"] = str(count)
        switches.append("--norandommap")
    else:
        options["runtime"] = f"{seconds:g}"
        switches += ["--time_based", "--norandommap"]
    finished = run(["fio", *switches, *(f"--{name}={value}" for name, value in options.items())])
    report = json.loads(finished.stdout[finished.stdout.index("{") :])["jobs"][0]
    write, sync = report["write"], report["sync"]
    took = max(write["runtime"] / 1e3, 1e-3) + sync["lat_ns"]["mean"] * sync["total_ios"] / jobs / 1e9
    return float(write["io_bytes"] / took if sequential else write["total_ios"] / took)


def require_same_content(path: Path, reference: Path) -> None:
    """Compare the sizes and some pieces of two files. Raises BenchError: the speed of wrong bytes is of no interest."""
    size = reference.stat().st_size
    if path.stat().st_size != size:
        raise BenchError(f"{path}: {path.stat().st_size} bytes, expected the {size} of {reference}")
    places = random.Random(0)
    offsets = [0, size - COMPARED_PIECE_SIZE]
    offsets += [places.randrange(size - COMPARED_PIECE_SIZE) for _ in range(COMPARED_PIECES)]
    with path.open("rb", buffering=0) as file, reference.open("rb", buffering=0) as expected:
        for offset in offsets:
            file.seek(offset)
            expected.seek(offset)
            if file.read(COMPARED_PIECE_SIZE) != expected.read(COMPARED_PIECE_SIZE):
                raise BenchError(f"{path}: the 64 KiB at {offset:#x} differ from {reference}")
