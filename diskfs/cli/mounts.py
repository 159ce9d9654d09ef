"""`diskfs mounts`."""

import argparse
from typing import Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json
from diskfs.cli.output import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List the mounts of diskfs that this user can see."""
    from diskfs.mountpoints import mounts, read_status, state

    found: list[dict[str, Any]] = []
    for mount in mounts():
        condition = state(mount)
        status = (read_status(mount) if condition == "active" else None) or {}
        kept = {key: status.get(key) for key in ("pid", "started", "reads", "bytes_read", "errors", "last_error")}
        if "remote" in status:
            kept["remote"] = status["remote"]
        found.append({"mountpoint": str(mount.mountpoint), "source": mount.source, "state": condition, **kept})
    if options.json:
        print_json(found)
    elif found:
        rows = [(entry["mountpoint"], entry["source"], entry["state"], entry["pid"] or "-") for entry in found]
        print_table(("mountpoint", "source", "state", "pid"), rows)
    return exit_codes.DONE
