"""The report as the JSON document that scripts get (docs/schemas/preflight.schema.json); text and HTML show the same.

Nothing in it depends on when or how fast it was made, so two reports on one image are the same bytes.
"""

from collections.abc import Sequence
from typing import Any

from diskfs.preflight.answer import Answer, answer
from diskfs.preflight.facts import Facts
from diskfs.preflight.picture import describe_disks
from diskfs.preflight.request import Request
from diskfs.preflight.rules.engine import Result, run
from diskfs.preflight.rules.outcome import Status
from diskfs_formats.findings import Severity

REFUSED = "refused"
ACCEPTED = "accepted"


def make_report(facts: Facts) -> dict[str, Any]:
    """Run the rules and describe what came out."""
    results = run(facts)
    found = answer(facts)
    return {
        "source": facts.location,
        "operation": facts.request.operation.value,
        "request": _request(facts.request),
        "verdict": REFUSED if any(result.refuses for result in results) else ACCEPTED,
        "undecided": [
            result.rule.id
            for result in results
            if result.status is Status.UNKNOWN and result.severity is Severity.ERROR
        ],
        "facts": _facts(found),
        "disks": describe_disks(facts),
        "changes": [{"where": change.where, "what": change.what} for change in found.changes],
        "command": found.command,
        "rules": [_rule(result) for result in results if result.status is not Status.NOT_APPLICABLE],
        "not_applicable": [
            {"id": result.rule.id, "reason": result.found}
            for result in results
            if result.status is Status.NOT_APPLICABLE
        ],
    }


def _request(request: Request) -> dict[str, Any]:
    return {
        "region": request.region,
        "license_type": request.license_type,
        "usage_operation": request.usage_operation,
        "boot_mode": request.boot_mode,
        "platform": request.platform,
        "instance_type": request.instance_type,
        "disk_format": request.disk_format,
        "s3_prefix": request.s3_prefix,
        "encrypted": request.encrypted,
        "from_snapshot": request.from_snapshot,
    }


def _facts(found: Answer) -> dict[str, Any]:
    return {
        "os": found.os,
        "os_version": found.os_version,
        "kernel": found.kernel,
        "architecture": found.architecture,
        "boot_mode": found.boot_mode,
        "boot_mode_reason": found.boot_mode_reason,
        "license_type": found.license_type,
        "ena_support": found.ena_support,
    }


def _rule(result: Result) -> dict[str, Any]:
    is_open = result.status is not Status.PASS
    return {
        "id": result.rule.id,
        "status": result.status.value,
        "severity": result.severity.value,
        "title": result.rule.statement,
        "found": result.found,
        "evidence": _evidence(result),
        "message": result.rule.message or "",
        "remedy": result.remedy if is_open else "",
    }


def _evidence(result: Result) -> Sequence[str]:
    return [outcome.found for outcome in result.outcomes if outcome.found]
