"""`diskfs explain`."""

import argparse
import re
from typing import TYPE_CHECKING, Any

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json
from diskfs.cli.output import print_error, print_json, print_line

if TYPE_CHECKING:
    from diskfs.preflight.matching import Found
    from diskfs.preflight.rules.catalogue import Rule

_RULE = re.compile(r"(?:VMIE-)?([A-Z][A-Z0-9]{1,4})-(\d{1,2})", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = "Exit code 3: no entry is like the message."
    parser.add_argument(
        "text", metavar="MESSAGE", nargs="+", help="what AWS said, or a rule's id, such as VMIE-BOOT-08"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Find the entry of the service's troubleshooting chapter for a message; the answer is no if there is none."""
    text = " ".join(options.text)
    if _RULE.fullmatch(text.strip()):
        return explain_rule(text, as_json=options.json)
    from diskfs.preflight.matching import find_entries

    found = find_entries(text)
    if options.json:
        print_json({"text": text, "entries": [_entry(one) for one in found]})
    elif not found:
        print_error("no entry of the troubleshooting chapter is like this message")
    else:
        for number, one in enumerate(found):
            if number:
                print_line()
            _print_entry(one)
    return exit_codes.DONE if found else exit_codes.NOT_QUALIFIED


def explain_rule(rule_id: str, *, as_json: bool) -> int:
    """Say what a rule is, how it is checked, and what helps."""
    from diskfs.preflight.rules.catalogue import rules

    match = _RULE.fullmatch(rule_id.strip())
    rule = rules().get(f"VMIE-{match[1].upper()}-{match[2]:0>2}") if match else None
    if rule is None:
        groups = ", ".join(dict.fromkeys(rule.group for rule in rules().values()))
        print_error(f"there is no rule {rule_id}; ids look like VMIE-BOOT-08, and the groups are {groups}")
        return exit_codes.USAGE
    if as_json:
        print_json(_rule(rule))
        return exit_codes.DONE
    described = _rule(rule)
    print_line(f"{rule.id} ({described['severity']}; {', '.join(described['operations'])}; guest: {rule.guest})")
    print_line(rule.statement)
    for title, key in (("How it is checked", "checked"), ("VM Import says", "message"), ("Remedy", "remedy")):
        if described[key]:
            print_line(f"  {title}: {described[key]}")
    for decision in rule.decisions:
        print_line(f"  Decided {decision}")
    for entry in described["errors"]:
        print_line(f"  Error: {entry}")
    return exit_codes.DONE


def _rule(rule: "Rule") -> dict[str, Any]:
    from diskfs.preflight.rules.catalogue import errors
    from diskfs.preflight.rules.engine import WHY_NOT
    from diskfs.preflight.rules.registry import checks

    check = checks().get(rule.id)
    return {
        "id": rule.id,
        "operations": sorted(rule.operations),
        "guest": rule.guest,
        "severity": rule.severity.value,
        "mode": rule.mode.value,
        "title": rule.statement,
        "checked": check.summary if check else f"not checked: {WHY_NOT[rule.mode]}",
        "message": rule.message or "",
        "remedy": rule.remedy,
        "decisions": list(rule.decisions),
        "errors": [f"{entry.id}: {entry.messages[0]}" for entry in errors() if rule.id in entry.rules],
    }


def _entry(found: "Found") -> dict[str, Any]:
    entry = found.entry
    return {
        "id": entry.id,
        "likeness": round(found.likeness, 3),
        "where": entry.where,
        "message": entry.messages[0],
        "meaning": entry.meaning,
        "remedy": entry.remedy,
        "rules": list(entry.rules),
    }


def _print_entry(found: "Found") -> None:
    entry = found.entry
    print_line(f"{entry.id} ({entry.where}): {entry.messages[0]}")
    if entry.meaning:
        print_line(f"  Meaning: {entry.meaning}")
    if entry.remedy:
        print_line(f"  Remedy: {entry.remedy}")
    print_line(f"  Rules: {', '.join(entry.rules)} (diskfs explain RULE says more)")
