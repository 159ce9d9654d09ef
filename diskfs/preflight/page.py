"""The report as one page: no script, no request, everything from the image escaped by the template engine.

docs/decisions/0020-rules-as-data-and-the-report.md says why a template engine is used.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diskfs.errors import SinkError
from diskfs.preflight.drawing import draw_disk
from diskfs.sinks.file import FileSink
from diskfs_formats.text import human_size, printable

SECTIONS = (
    ("fail", "error", "Errors: the service would refuse the image"),
    ("fail", "warning", "Warnings"),
    ("fail", "info", "Notes"),
    ("unknown", "", "Could not be decided"),
    ("not-checked", "", "Not checked"),
    ("pass", "", "Kept"),
)
"""Status, severity (any if empty) and heading, in the order of the page."""


FIRST_LINE = "<!doctype html><!-- diskfs preflight -->"
"""By which a page of ours is known: no other file is replaced."""


def write_page(report: dict[str, Any], path: Path) -> None:
    """Write the page; raises SinkError for a file that is there and is no page of ours, and if writing fails."""
    replace = _is_page(path)
    if not replace and path.exists():
        raise SinkError(f"{path}: it is there already, and is no report of diskfs preflight: give another name")
    sink = FileSink(path, replace=replace)
    try:
        sink.write(render_page(report).encode())
        sink.commit()
    finally:
        sink.abort()


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(FIRST_LINE)) == FIRST_LINE.encode()
    except OSError:
        return False


def render_page(report: dict[str, Any]) -> str:
    """Return the page for a report of `diskfs.preflight.report`."""
    environment = Environment(
        loader=PackageLoader("diskfs.preflight"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["size"] = human_size
    return environment.get_template("page.html").render(
        report=report,
        bars=[draw_disk(disk) for disk in report["disks"]],
        sections=[(title, _select(report, status, severity), status) for status, severity, title in SECTIONS],
    )


def _select(report: dict[str, Any], status: str, severity: str) -> list[dict[str, Any]]:
    return [rule for rule in report["rules"] if rule["status"] == status and severity in {"", rule["severity"]}]


def _shown(value: object) -> object:
    """Make what would not be seen, or would turn the text around, visible; markup is left to the escaping."""
    return printable(value, 4000) if type(value) is str else value
