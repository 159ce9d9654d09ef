"""`diskfs verify`."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json, add_source
from diskfs.cli.output import print_json, print_line

if TYPE_CHECKING:
    from diskfs.disks.opening import OpenedSource
    from diskfs_formats.findings import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check structure, checksums, every stored unit and the manifest; the answer is no if an error is found."""
    from diskfs.disks.opening import open_source
    from diskfs_formats.findings import Severity

    found: list[dict[str, Any]] = []
    failed = False
    with open_source(options.source, format_name=options.format) as opened:
        for place, finding in _findings(opened):
            failed = failed or finding.severity is Severity.ERROR
            entry = {"where": place, "rule": finding.rule, "severity": finding.severity.value}
            found.append({**entry, "message": finding.message, "remedy": finding.remedy})
            if not options.json and not (options.quiet and finding.severity is not Severity.ERROR):
                print_line(f"{place}: {finding.severity.value}: {finding.message} [{finding.rule}]")
        disks = len(opened.disks)
    verdict = "damaged" if failed else "sound"
    if options.json:
        print_json({"source": options.source, "verdict": verdict, "findings": found})
    elif not options.quiet:
        print_line(f"{options.source}: {verdict} ({disks} disk{'s' * (disks != 1)} checked)")
    return exit_codes.NOT_QUALIFIED if failed else exit_codes.DONE


def _findings(opened: "OpenedSource") -> "Iterator[tuple[str, Finding]]":
    from diskfs_formats.errors import DiskfsError
    from diskfs_formats.findings import Finding, Severity

    if opened.appliance is not None:
        for finding in (*opened.findings, *opened.appliance.verify()):
            yield opened.appliance.descriptor_name, finding
    for disk in opened.disks:
        place = f"disk{disk.index}"
        try:
            for finding in disk.check():
                yield place, finding
            if disk.opened is not None:
                for finding in disk.partitions[1]:
                    yield place, finding
        except DiskfsError as error:
            yield place, Finding("unreadable", Severity.ERROR, str(error))
