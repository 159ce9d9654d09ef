"""`diskfs commit`."""

import argparse
from pathlib import Path

from diskfs.cli import exit_codes
from diskfs.cli.convert import add_target, usage_problem, write_target
from diskfs.cli.options import add_json
from diskfs.cli.output import print_error
from diskfs.cli.overlays import add_reopening, reopen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_reopening(parser)
    add_target(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write the disk with its changes, or the appliance, as a new image; the overlay and its source stay."""
    problem = usage_problem(options)
    if problem:
        print_error(problem)
        return exit_codes.USAGE
    from diskfs.disks.reopening import require_outside
    from diskfs.sinks.opening import STANDARD_OUTPUT, is_s3

    if options.target != STANDARD_OUTPUT and not is_s3(options.target):
        require_outside(options.overlay, Path(options.target))
    with reopen(options) as opened:
        options.source = opened.source.location
        return write_target(options, opened.source)
