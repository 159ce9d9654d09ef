"""VMIE-LIC: does the license of the request fit the system that was found?"""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, not_checked, passed, unknown
from diskfs.preflight.rules.regions import version_of
from diskfs.preflight.rules.registry import check
from diskfs.preflight.windows import WindowsFacts
from diskfs.preflight.windows.readings import SOFTWARE

SQL_SERVER = r"Microsoft\Microsoft SQL Server"
SQL_INSTANCES = rf"{SQL_SERVER}\Instance Names\SQL"
LICENSE_TYPES = ("AWS", "BYOL")
LICENSE_PROGRAMS = {"rhel": "Cloud Access (BYOS)", "sles": "SUSE Public Cloud Program (BYOS)"}
SQL_USAGE = {
    "Web": ("RunInstances:0202", "RunInstances:0200"),
    "Standard": ("RunInstances:0006", "RunInstances:0004"),
    "Enterprise": ("RunInstances:0102", "RunInstances:0100"),
}
"""SQL Server's edition, and the values of --usage-operation for it: on Windows, and by itself."""


def allowed_licenses(facts: Facts) -> tuple[str, ...]:
    """Return the license types that the system found may have, the service's default first; empty if unknown."""
    if "windows" in facts.guests:
        return ("AWS", "BYOL") if version_of(facts).is_server else ("BYOL",)
    return ("BYOL",) if "linux" in facts.guests else ()


@check("VMIE-LIC-03")
def license_fits(facts: Facts) -> Iterator[Outcome]:
    """--license-type, if it is given, is AWS or BYOL, and the system found may have it."""
    given = facts.request.license_type
    allowed = allowed_licenses(facts)
    if given is None:
        yield passed("--license-type is not given, so the service chooses one that fits")
    elif given not in LICENSE_TYPES:
        yield failed(f"--license-type {given}", f"give {' or '.join(LICENSE_TYPES)}")
    elif not allowed:
        yield not_applicable("no system was found")
    elif given not in allowed:
        yield failed(f"--license-type {given}, and the system takes {' or '.join(allowed)}")
    else:
        yield passed(f"--license-type {given}")


@check("VMIE-LIC-04", "VMIE-LIC-08")
def system_takes_byol_only(facts: Facts) -> Iterator[Outcome]:
    """--license-type is not AWS for Linux and for a Windows client."""
    allowed = allowed_licenses(facts)
    if "AWS" in allowed:
        yield not_applicable("the system is a Windows server")
    elif facts.request.license_type == "AWS":
        yield failed("--license-type AWS", "give --license-type BYOL")


@check("VMIE-LIC-05")
def subscription_of_rhel(facts: Facts) -> Iterator[Outcome]:
    """Tells by os-release whether the system is RHEL: a reminder."""
    yield from _subscription(facts, "rhel")


@check("VMIE-LIC-06")
def subscription_of_sles(facts: Facts) -> Iterator[Outcome]:
    """Tells by os-release whether the system is SLES: a reminder."""
    yield from _subscription(facts, "sles")


def _subscription(facts: Facts, distribution: str) -> Iterator[Outcome]:
    release = facts.linux.release if facts.linux is not None else None
    if release is None:
        yield unknown("which distribution it is is not known")
    elif release.id != distribution and not (distribution == "sles" and release.id.startswith("sles")):
        yield not_applicable(f"the system is {release.name}")
    else:
        program = LICENSE_PROGRAMS[distribution]
        yield failed(f"{release.place}: {release.name} {release.version}", f"have licenses of {program}")


@check("VMIE-LIC-07")
def licenses_of_a_server(facts: Facts) -> Iterator[Outcome]:
    """Tells by InstallationType whether the system is a Windows server."""
    version = version_of(facts)
    if version.is_server:
        yield passed(f"{version}: AWS or BYOL")
    else:
        yield not_applicable(f"{version} is no server")


@check("VMIE-LIC-09")
def default_license(facts: Facts) -> Iterator[Outcome]:
    """Predicts the license type from the system: AWS for a Windows server, else BYOL."""
    allowed = allowed_licenses(facts)
    yield passed(f"by default {allowed[0]}") if allowed else not_applicable("no system was found")


@check("VMIE-LIC-14")
def edition_of_sql_server(facts: Facts) -> Iterator[Outcome]:
    """--usage-operation names SQL Server if, and only if, one is installed, with its edition if the registry has it."""
    given = facts.request.usage_operation
    editions = _sql_servers(facts)
    if given is None:
        yield not_applicable("--usage-operation is not given")
        return
    named = next((edition for edition, values in SQL_USAGE.items() if given in values), None)
    where = "; ".join(f"{place}: {edition or 'SQL Server'}" for edition, place in editions)
    if named is None and editions:
        yield failed(f"--usage-operation {given} is without SQL Server, and {where}")
    elif named is not None and not editions:
        yield failed(f"--usage-operation {given} is for SQL Server {named}, and none was found")
    elif named is not None and not any(edition.startswith(named) or not edition for edition, _ in editions):
        yield failed(f"--usage-operation {given} is for SQL Server {named}, and {where}")
    else:
        yield passed(where)


def _sql_servers(facts: Facts) -> list[tuple[str, str]]:
    """Return (edition, where it stands) of each SQL Server; the edition is empty where it is not known."""
    if facts.windows is not None:
        return list(_windows_sql_servers(facts.windows))
    if facts.linux is not None:
        return [("", path) for path in ("/opt/mssql/bin/sqlservr",) if facts.linux.tree.exists(path)]
    return []


def _windows_sql_servers(windows: WindowsFacts) -> Iterator[tuple[str, str]]:
    """Look into each instance's Setup key: `Instance Names\\SQL` gives the keys."""
    names = windows.registry.key(SOFTWARE, SQL_INSTANCES)
    for value in names.values() if names is not None else ():
        reading = windows.software(rf"{SQL_SERVER}\{value.text}\Setup", "Edition")
        yield (reading.text or "").removesuffix(" Edition"), str(reading)


@check("VMIE-INST-02")
def no_byol_for_an_instance(facts: Facts) -> Iterator[Outcome]:
    """--license-type is not BYOL for Windows and import-instance."""
    if facts.request.license_type is None:
        yield not_checked("it depends on the license: give --license-type")
    elif facts.request.license_type == "BYOL":
        yield failed("--license-type BYOL", "use import-image")
    else:
        yield passed(f"--license-type {facts.request.license_type}")
