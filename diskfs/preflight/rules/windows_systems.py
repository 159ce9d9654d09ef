"""VMIE-OS-05 to -08: which Windows it is; where it may run is checked in `regions`."""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs.preflight.supported_os import WindowsSystem
from diskfs.preflight.windows import WindowsFacts
from diskfs.preflight.windows.readings import DEFAULT
from diskfs.preflight.windows.version import CURRENT_VERSION, ENGLISH_US

SERVER_LEVELS = CURRENT_VERSION + r"\Server\ServerLevels"

NOT_NANO = "install Server Core or the Desktop Experience, and move the roles there"


def windows_of(facts: Facts) -> WindowsFacts:
    """Return the facts about Windows; the engine runs these checks only if there are any."""
    windows = facts.windows
    assert windows is not None
    return windows


@check("VMIE-OS-05")
def listed_version(facts: Facts) -> Iterator[Outcome]:
    """The build number, server or client, edition (EditionID) and bitness (machine of ntoskrnl.exe) are in one line of
    the service's table.
    """
    version = windows_of(facts).version
    system = version.listed
    build = f"{version.read('CurrentBuildNumber')}, version {version.nt}, {'server' if version.is_server else 'client'}"
    if system is None:
        yield failed(f"{version}: {build}: this build is not in the table")
        return
    if not version.edition:
        yield failed(f"{version}: {version.edition_evidence}: the edition is not in the table", _editions(system))
    elif version.edition not in system.editions:
        yield failed(f"{version}: {version.edition_evidence}, which is {version.edition}", _editions(system))
    architecture, evidence = version.machine
    if architecture == "arm64":
        yield failed(f"{version}: {evidence}: ARM64 is not supported")
    elif version.bits is None:
        yield unknown(f"{evidence}: whether it is 32-bit or 64-bit cannot be told")
    elif version.bits not in system.bits:
        yield failed(
            f"{version}: {evidence}: {system.name} is supported with {' and '.join(map(str, system.bits))} bits"
        )
    yield passed(f"{version} is {system.name}: {build}; {evidence}")


def _editions(system: WindowsSystem) -> str:
    return f"of {system.name} these editions are supported: {', '.join(system.editions)}"


@check("VMIE-OS-06")
def server_2003_service_pack(facts: Facts) -> Iterator[Outcome]:
    """CSDVersion of Windows Server 2003 names Service Pack 1 or a later one."""
    version = windows_of(facts).version
    system = version.listed
    if system is None or not system.min_service_pack:
        yield not_applicable("it is not Windows Server 2003")
    elif version.service_pack < system.min_service_pack:
        yield failed(str(version.read("CSDVersion")), "install Service Pack 2 before export")
    else:
        yield passed(str(version.read("CSDVersion")))


@check("VMIE-OS-07")
def no_nano_server(facts: Facts) -> Iterator[Outcome]:
    """ServerLevels has no NanoServer = 1, and neither EditionID nor InstallationType speaks of Nano."""
    windows = windows_of(facts)
    version = windows.version
    level = windows.software(SERVER_LEVELS, "NanoServer")
    if level.integer:
        yield failed(str(level), NOT_NANO)
    for name in ("EditionID", "InstallationType"):
        reading = version.read(name)
        if "nano" in (reading.text or "").lower():
            yield failed(str(reading), NOT_NANO)
    yield passed(f"{level.where}: NanoServer is not set")


@check("VMIE-OS-08")
def client_language(facts: Facts) -> Iterator[Outcome]:
    """InstallLanguage and Default of a client are 0409, US English, and so is the language of its sign-in screen, if
    one is chosen (PreferredUILanguages of the hive DEFAULT).
    """
    windows = windows_of(facts)
    version = windows.version
    if version.is_server:
        yield not_applicable("it is a server")
        return
    for reading, number in version.languages.ui:
        if number is None:
            yield unknown(str(reading))
        elif number != ENGLISH_US:
            yield failed(f"{reading}; US English is 0409", "set the display and system language to English (US)")
        else:
            yield passed(str(reading))
    if windows.registry.exists(DEFAULT):
        chosen = windows.registry.read(DEFAULT, r"Control Panel\Desktop", "PreferredUILanguages")
        if chosen.texts and chosen.texts[0].lower() != "en-us":
            yield failed(str(chosen), "set the display language of the welcome screen to English (US)")
