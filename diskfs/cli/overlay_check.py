"""`diskfs overlay-check`."""

import argparse
from typing import Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json
from diskfs.cli.output import print_error, print_json, print_line
from diskfs.cli.overlays import add_overlay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_overlay(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Examine every structure of an overlay that is not in use; the answer is no if damage is found."""
    from diskfs.disks.overlay import OverlayFolder
    from diskfs.errors import DamagedOverlay
    from diskfs_formats.findings import Severity

    found: list[dict[str, Any]] = []
    try:
        for finding in OverlayFolder.check(options.overlay):
            found.append(
                {
                    "rule": finding.rule,
                    "severity": finding.severity.value,
                    "message": finding.message,
                    "remedy": finding.remedy,
                }
            )
            if not options.json and not (options.quiet and finding.severity is not Severity.ERROR):
                remedy = f"; {finding.remedy}" if finding.remedy else ""
                print_line(f"{finding.severity.value}: {finding.message}{remedy} [{finding.rule}]")
    except DamagedOverlay as error:
        # Damage that leaves nothing to look at is an answer too.
        found.append({"rule": "unreadable", "severity": "error", "message": str(error), "remedy": ""})
        if not options.json:
            print_error(str(error))
    damaged = any(entry["severity"] == Severity.ERROR.value for entry in found)
    verdict = "damaged" if damaged else "sound"
    if options.json:
        print_json({"overlay": str(options.overlay), "verdict": verdict, "findings": found})
    elif not options.quiet:
        print_line(f"{options.overlay}: {verdict}")
    return exit_codes.NOT_QUALIFIED if damaged else exit_codes.DONE
