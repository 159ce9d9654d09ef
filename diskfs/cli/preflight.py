"""`diskfs preflight`."""

import argparse
from pathlib import Path
from typing import Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json, add_source, remote_options
from diskfs.cli.output import print_error, print_json, print_line, print_table

OPERATIONS = ("import-image", "import-snapshot", "import-instance", "export-image", "export-instance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = "Exit code 3: the service would refuse the image."
    add_source(parser, is_optional=True)
    add_json(parser)
    parser.add_argument("--for", dest="operation", choices=OPERATIONS, default="import-image", help="what it is for")
    group = parser.add_argument_group("parameters of the request, as the aws command line takes them")
    group.add_argument("--license-type", metavar="TYPE", help="AWS or BYOL")
    group.add_argument("--usage-operation", metavar="CODE", help="such as RunInstances:0002")
    group.add_argument("--boot-mode", metavar="MODE", help="legacy-bios or uefi")
    group.add_argument("--platform", metavar="NAME", help="Linux or Windows")
    group.add_argument("--instance-type", metavar="TYPE", help="for import-instance")
    group.add_argument("--from-snapshot", action="store_true", help="the disk will be given as an EBS snapshot")
    group.add_argument("--encrypted", action="store_true", help="ask for an encrypted AMI or snapshot")
    group.add_argument("--disk-format", metavar="F", help="of an export: OVA, VHD, VMDK, RAW")
    group.add_argument("--s3-prefix", metavar="PREFIX", help="of an export: what its key begins with")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write the report as one page")
    parser.add_argument("--deep", action="store_true", help="read every grain of the image, not just what decides")
    parser.add_argument("--all", action="store_true", help="also list the rules that are kept, and those not checked")
    parser.add_argument("--explain", metavar="RULE", help="explain one rule, such as VMIE-BOOT-08")


def run(options: argparse.Namespace) -> int:
    """Check an image against the rules of VM Import; the answer is no if a rule of severity error fails."""
    if options.explain is not None:
        from diskfs.cli.explain import explain_rule

        return explain_rule(options.explain, as_json=options.json)
    if options.source is None:
        print_error("SOURCE is missing: diskfs preflight --help says more")
        return exit_codes.USAGE
    from diskfs.preflight.opening import open_facts
    from diskfs.preflight.report import REFUSED, make_report

    with open_facts(
        options.source,
        _request(options),
        format_name=options.format,
        parents=options.parent,
        deep=options.deep,
        remote=remote_options(options),
    ) as facts:
        report = make_report(facts)
    if options.html is not None:
        from diskfs.preflight.page import write_page

        write_page(report, options.html)
    if options.json:
        print_json(report)
    else:
        _print(report, quiet=options.quiet, everything=options.all)
    return exit_codes.NOT_QUALIFIED if report["verdict"] == REFUSED else exit_codes.DONE


def _request(options: argparse.Namespace) -> Any:
    from diskfs.preflight.request import Operation, Request

    return Request(
        operation=Operation(options.operation),
        region=options.region,
        license_type=options.license_type,
        usage_operation=options.usage_operation,
        boot_mode=options.boot_mode,
        platform=options.platform,
        instance_type=options.instance_type,
        disk_format=options.disk_format,
        s3_prefix=options.s3_prefix,
        encrypted=options.encrypted,
        from_snapshot=options.from_snapshot,
    )


_HEADINGS: tuple[tuple[str, str | None, str], ...] = (
    ("fail", "error", "Errors: the service would refuse the image"),
    ("fail", "warning", "Warnings"),
    ("fail", "info", "Notes"),
)
_QUIET_HEADINGS: tuple[tuple[str, str | None, str], ...] = (
    ("not-checked", None, "Not checked"),
    ("pass", None, "Kept"),
)
_FACTS = (
    ("os", "system"), ("kernel", "kernel"), ("architecture", "architecture"), ("boot_mode", "boot mode"),
    ("license_type", "license type"),
)  # fmt: skip


IDS_IN_A_LINE = 8


def _print(report: dict[str, Any], *, quiet: bool, everything: bool) -> None:
    limit = ", as far as it could be decided" if report["undecided"] and report["verdict"] == "accepted" else ""
    print_line(f"{report['source']}: {report['operation']}: {report['verdict']}{limit}")
    facts = report["facts"]
    for key, title in _FACTS:
        if key == "boot_mode" and facts["boot_mode_reason"]:
            print_line(f"  {title:<13} {facts['boot_mode'] or 'not known'} ({facts['boot_mode_reason']})")
        elif facts[key] is not None:
            print_line(f"  {title:<13} {facts[key]}")
    for status, severity, title in _HEADINGS:
        if quiet and severity != "error":
            continue
        _print_rules(report, status, severity, title)
    if not quiet:
        _print_undecided(report)
    if everything:
        for status, severity, title in _QUIET_HEADINGS:
            _print_short(report, status, severity, title)
    if quiet:
        return
    if report["changes"]:
        print_line()
        print_line("What the import changes in the system")
        for change in report["changes"]:
            print_line(f"  {change['where']}: {change['what']}")
    if report["command"]:
        print_line()
        print_line("Suggested command")
        print_line(f"  {report['command']}")
    counts = {status: sum(rule["status"] == status for rule in report["rules"]) for status in ("pass", "not-checked")}
    print_line()
    print_line(
        f"{counts['pass']} rules are kept, {counts['not-checked']} were not checked because they need AWS's API, the "
        "request or a person" + ("" if everything else ": --all lists them")
    )


def _print_rules(report: dict[str, Any], status: str, severity: str | None, title: str) -> None:
    rules = _select(report, status, severity)
    if not rules:
        return
    print_line()
    print_line(title)
    for rule in rules:
        lines = rule["evidence"] or [rule["title"]]
        print_line(f"  {rule['id']:<13} {lines[0]}")
        for line in lines[1:]:
            print_line(f"  {'':<13} {line}")
        if status == "fail":
            if rule["message"]:
                print_line(f"  {'':<13} VM Import says: {rule['message']}")
            if rule["remedy"]:
                print_line(f"  {'':<13} Remedy: {rule['remedy']}")


def _print_undecided(report: dict[str, Any]) -> None:
    """Print each reason once, with the rules that it keeps from being decided."""
    reasons: dict[str, list[str]] = {}
    for rule in _select(report, "unknown", None):
        reasons.setdefault(rule["found"], []).append(rule["id"])
    if reasons:
        print_line()
        print_line("Could not be decided")
    for reason, ids in reasons.items():
        print_line(f"  {reason}")
        for start in range(0, len(ids), IDS_IN_A_LINE):
            print_line(f"    {' '.join(ids[start : start + IDS_IN_A_LINE])}")


def _print_short(report: dict[str, Any], status: str, severity: str | None, title: str) -> None:
    rules = _select(report, status, severity)
    if rules:
        print_line()
        print_line(title)
        print_table(("  rule", "why"), ((f"  {rule['id']}", rule["found"] or rule["title"]) for rule in rules))


def _select(report: dict[str, Any], status: str, severity: str | None) -> list[dict[str, Any]]:
    return [rule for rule in report["rules"] if rule["status"] == status and severity in {None, rule["severity"]}]
