"""`diskfs info`."""

import argparse
from typing import Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json, add_source
from diskfs.cli.output import human_size, print_error, print_json, print_line, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    add_json(parser)
    parser.add_argument("--chain", action="store_true", help="name every file of a chain of parents")


def run(options: argparse.Namespace) -> int:
    """Describe a source; fails if a disk of it cannot be opened, after describing the others."""
    from diskfs.cli.selection import open_from
    from diskfs.guest.description import describe_source

    with open_from(options) as opened:
        if opened.disks:
            opened.require_a_disk()
        description = describe_source(opened)
    if options.json:
        print_json(description)
    else:
        _print(description, chain=options.chain)
    code = exit_codes.DONE
    for disk in description["disks"]:
        if "error" in disk:
            print_error(f"disk{disk['index']}: {disk['error']}")
            code = exit_codes.FAILED
    return code


def _print(description: dict[str, Any], *, chain: bool) -> None:
    disks = description["disks"]
    kind = {"ova": "appliance (OVA)", "ovf": "appliance (OVF)"}.get(description["container"], "image")
    print_line(f"{description['source']}: {kind}, {len(disks)} disk{'s' * (len(disks) != 1)}")
    _print_findings(description["findings"], "")
    for disk in disks:
        print_line()
        if "error" in disk:
            print_line(f"disk{disk['index']}  {disk['name']}: cannot be read")
            continue
        print_line(f"disk{disk['index']}  {disk['name']}{_id(disk)}")
        form = disk["format"] if disk["variant"] == disk["format"] else f"{disk['format']} {disk['variant']}"
        print_line(f"  format        {form}")
        print_line(f"  virtual size  {human_size(disk['virtual_size'])} ({disk['virtual_size']} bytes)")
        print_line(f"  file size     {human_size(disk['file_size'])} ({disk['file_size']} bytes)")
        if chain:
            for depth, link in enumerate(disk["chain"]):
                print_line(f"  chain {depth:<8}{link['name']} ({link['format']} {link['variant']})")
        elif disk["parent"]:
            print_line(f"  parent        {disk['parent']}")
        if disk["filesystem"]:
            print_line(f"  file system   {disk['filesystem']} on the whole disk")
        _print_partitions(disk["partition_table"])
        _print_findings(disk["findings"], "  ")


def _print_partitions(table: dict[str, Any] | None) -> None:
    if table is None:
        print_line("  partitions    none")
        return
    print_line(f"  partitions    {table['scheme'].upper()}, {table['sector_size']}-byte sectors")
    rows = [
        (f"    {part['number']}", part["offset"], human_size(part["size"]), part["filesystem"] or "-", part["type"],
         part["name"])
        for part in table["partitions"]
    ]  # fmt: skip
    print_table(("    #", "offset", "size", "file system", "type", "name"), rows, right=(1, 2))


def _print_findings(findings: list[dict[str, str]], indent: str) -> None:
    for finding in findings:
        remedy = f" ({finding['remedy']})" if finding["remedy"] else ""
        print_line(f"{indent}{finding['severity']}: {finding['message']}{remedy}")


def _id(disk: dict[str, Any]) -> str:
    return f"  (id {disk['id']})" if disk["id"] else ""
