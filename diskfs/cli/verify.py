"""`diskfs verify`."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json, add_source
from diskfs.cli.output import print_error, print_json, print_line

if TYPE_CHECKING:
    from diskfs.disks.opening import OpenedSource
    from diskfs_formats.findings import Finding

UNCHECKED = "unsupported"
"""The rule of a disk whose format or file cannot be read: nothing is known to be wrong with it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check structure, checksums, every stored unit and the manifest.

    The answer is no if damage is found; a disk that cannot be checked, because its format is not read, is a failure.
    """
    from diskfs.cli.selection import open_from
    from diskfs_formats.errors import CorruptImage
    from diskfs_formats.findings import Severity

    found: list[dict[str, Any]] = []
    failed = unchecked = False
    try:
        source = open_from(options)
    except CorruptImage as error:
        # Damage that leaves nothing to look at is an answer too.
        if options.json:
            entry = {"where": "source", "rule": "unreadable", "severity": "error", "message": str(error), "remedy": ""}
            print_json({"source": options.source, "verdict": "damaged", "findings": [entry]})
        print_error(str(error))
        return exit_codes.NOT_QUALIFIED
    with source as opened:
        for place, finding in _findings(opened):
            if finding.rule == UNCHECKED:
                unchecked = True
            elif finding.severity is Severity.ERROR:
                failed = True
            entry = {"where": place, "rule": finding.rule, "severity": finding.severity.value}
            found.append({**entry, "message": finding.message, "remedy": finding.remedy})
            if not options.json and not (options.quiet and finding.severity is not Severity.ERROR):
                print_line(f"{place}: {finding.severity.value}: {finding.message} [{finding.rule}]")
        disks = len(opened.disks)
    verdict = "damaged" if failed else "not checked" if unchecked else "sound"
    if options.json:
        print_json({"source": options.source, "verdict": verdict, "findings": found})
    elif not options.quiet:
        print_line(f"{options.source}: {verdict} ({disks} disk{'s' * (disks != 1)})")
    if failed:
        return exit_codes.NOT_QUALIFIED
    return exit_codes.FAILED if unchecked else exit_codes.DONE


def _findings(opened: "OpenedSource") -> "Iterator[tuple[str, Finding]]":
    from diskfs.errors import SourceError
    from diskfs_formats.errors import DiskfsError, UnsupportedFeature
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
        except (UnsupportedFeature, SourceError) as error:
            yield place, Finding(UNCHECKED, Severity.ERROR, str(error))
        except DiskfsError as error:
            yield place, Finding("unreadable", Severity.ERROR, str(error))
