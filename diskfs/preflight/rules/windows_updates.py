"""VMIE-WIN: what is installed, due or prepared: .NET, updates, Sysprep, security software, hardening, licenses."""

import re
from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed
from diskfs.preflight.rules.registry import check
from diskfs.preflight.rules.windows_systems import windows_of
from diskfs.preflight.windows.network import PROFILES, REACHED_PROFILES
from diskfs.preflight.windows.readings import SOFTWARE
from diskfs_formats.findings import Severity

DOWNLOAD_AND_ASK = 3
UPDATE_SETTINGS = {
    1: "off",
    2: "ask before download",
    3: "download, ask before install",
    4: "install",
    5: "users choose",
}
CLOCK_HOTFIX = ("KB2922223", frozenset({"ws2008", "ws2008r2", "win7", "win8", "ws2012", "win8.1", "ws2012r2"}))
DAYLIGHT_HOTFIX = ("KB2800213", frozenset({"ws2008", "ws2008r2", "win7"}))
INSTALL_RESTRICTIONS = r"Policies\Microsoft\Windows\DeviceInstall\Restrictions"
DENYING = ("DenyDeviceIDs", "DenyDeviceClasses", "DenyUnspecified", "DenyRemovableDevices", "DenyInstanceIDs")
APPLOCKER = r"Policies\Microsoft\Windows\SrpV2"
SOFTWARE_RESTRICTION = r"Policies\Microsoft\Windows\Safer\CodeIdentifiers"
DISALLOWED = 0
FIPS = r"CurrentControlSet\Control\Lsa\FipsAlgorithmPolicy"
CODE_INTEGRITY = "/System32/CodeIntegrity/SiPolicy.p7b"
PREVIEW = re.compile(r"(?i)insider|preview|beta|fbl_|prerelease|winmain_|(?<![a-z])rc[0-9]")
ARCHITECTURES = {"x86": "x86", "x64": "amd64", "arm64": "arm64"}
FIRST_EC2LAUNCH = 14393
"""The build of Windows Server 2016."""
SYSPREP_COMMAND = "%WINDIR%\\System32\\Sysprep\\sysprep.exe /oobe /generalize /shutdown"


@check("VMIE-WIN-11")
def net_4_5(facts: Facts) -> Iterator[Outcome]:
    """Release of .NET Framework 4 is at least 378389, which is 4.5; 3.5 SP1 is enough."""
    servicing = windows_of(facts).servicing
    if servicing.has_net_4_5:
        yield passed(str(servicing.net_4))
    elif servicing.has_net_3_5_sp1:
        yield passed(f"{servicing.net_4}; {servicing.net_3_5[1]}")
    else:
        yield failed(str(servicing.net_4))


@check("VMIE-WIN-12")
def net_3_5(facts: Facts) -> Iterator[Outcome]:
    """.NET Framework 3.5 has Install = 1 and SP of at least 1, or 4.5 is installed."""
    servicing = windows_of(facts).servicing
    install, pack = servicing.net_3_5
    if servicing.has_net_3_5_sp1:
        yield passed(f"{install}; {pack}")
    elif servicing.has_net_4_5:
        yield passed(str(servicing.net_4))
    else:
        yield failed(f"{install}; {pack}; {servicing.net_4}")


@check("VMIE-WIN-14")
def update_setting(facts: Facts) -> Iterator[Outcome]:
    """AUOptions, of the policy or else of Windows Update, is not 3; it is not set on Windows 10 and later."""
    reading = windows_of(facts).servicing.update_setting
    meaning = UPDATE_SETTINGS.get(reading.integer or 0, "Windows' own default")
    if reading.integer == DOWNLOAD_AND_ASK:
        yield failed(f"{reading} ({meaning}): the search for updates may load the processor after the start")
    else:
        yield passed(f"{reading} ({meaning})")


@check("VMIE-WIN-15")
def no_restart_pending(facts: Facts) -> Iterator[Outcome]:
    """Nothing waits for a restart: RebootPending, PackagesPending, RebootRequired, PendingFileRenameOperations,
    SetupExecute, RunOnce, WinSxS\\pending.xml.
    """
    reasons = windows_of(facts).servicing.restart_reasons
    for reason in reasons:
        yield failed(reason, "finish the updates, restart, and export after that")
    yield passed("nothing waits for a restart")


def _hotfix(facts: Facts, number: str, systems: frozenset[str]) -> Iterator[Outcome]:
    """Look for a hotfix among the packages of a version that it is for."""
    windows = windows_of(facts)
    listed = windows.version.listed
    if listed is None or listed.id not in systems:
        yield not_applicable(f"{number} is not for {windows.version}")
        return
    found = windows.servicing.installed(number)
    if found:
        yield passed(f"{SOFTWARE}: the package {found[0]} is installed")
    else:
        yield failed(f"{SOFTWARE}: no package {number} is installed; a later update may contain it")


@check("VMIE-WIN-16")
def clock_hotfix(facts: Facts) -> Iterator[Outcome]:
    """The package KB2922223 is installed on a version that it is for (up to Windows Server 2012 R2)."""
    yield from _hotfix(facts, *CLOCK_HOTFIX)


@check("VMIE-WIN-17")
def daylight_hotfix(facts: Facts) -> Iterator[Outcome]:
    """The package KB2800213 is installed on Windows Server 2008, 2008 R2 or Windows 7."""
    yield from _hotfix(facts, *DAYLIGHT_HOTFIX)


@check("VMIE-WIN-19")
def sysprep_has_run(facts: Facts) -> Iterator[Outcome]:
    """ImageState of a server says that Sysprep has generalized it. It may be run after the import as well: with
    EC2Launch on Windows Server 2016 and later, with EC2Config before.
    """
    windows = windows_of(facts)
    if not windows.version.is_server:
        yield not_applicable("it is a client")
    elif windows.servicing.is_generalized:
        yield passed(str(windows.servicing.image_state))
    else:
        tag = windows.servicing.sysprep_tag
        used = f"; {tag} is of an earlier run" if tag else ""
        agent = "EC2Launch" if windows.version.build >= FIRST_EC2LAUNCH else "EC2Config"
        installed = "is installed" if windows.services.ec2_agent(agent) is not None else "is not installed yet"
        yield failed(
            f"{windows.servicing.image_state}{used}",
            f"{SYSPREP_COMMAND}, or run it after the import with {agent}, which {installed}",
        )


@check("VMIE-WIN-20")
def default_answer_file(facts: Facts) -> Iterator[Outcome]:
    """States whether the import will add its answer file: Sysprep has run, and Panther has no unattend.xml."""
    servicing = windows_of(facts).servicing
    if not servicing.is_generalized:
        yield not_applicable("Sysprep has not run")
    elif servicing.answer_file is not None:
        yield passed(f"{servicing.answer_file.where} is there: the import adds none")
    else:
        yield passed("the import adds an answer file that accepts the EULA and sets the locale to EN-US")


@check("VMIE-WIN-22")
def own_answer_file(facts: Facts) -> Iterator[Outcome]:
    """Panther\\unattend.xml, if it is there, is well-formed, has the pass oobeSystem, and its components there are for
    the processor of the system.
    """
    windows = windows_of(facts)
    file = windows.servicing.answer_file
    if file is None:
        yield not_applicable(f"{windows.folder}/Panther/unattend.xml is not there")
        return
    if file.problem:
        yield failed(f"{file.where}: {file.problem}")
        return
    architectures = file.architectures("oobeSystem")
    if architectures is None:
        yield failed(f"{file.where} has no settings of the pass oobeSystem")
        return
    expected = ARCHITECTURES.get(windows.version.machine[0], "amd64")
    for wrong in sorted(architectures - {expected})[:8]:
        yield failed(f"{file.where}: processorArchitecture is {wrong!r}, the system is {expected}")
    yield passed(f"{file.where}: processorArchitecture is {expected}")


@check("VMIE-WIN-23")
def generalized_for_answer_file(facts: Facts) -> Iterator[Outcome]:
    """A server with an answer file of its own has been generalized by Sysprep."""
    windows = windows_of(facts)
    if windows.servicing.answer_file is None:
        yield not_applicable("there is no answer file")
    elif windows.servicing.is_generalized:
        yield passed(str(windows.servicing.image_state))
    else:
        yield failed(str(windows.servicing.image_state), SYSPREP_COMMAND)


@check("VMIE-WIN-24")
def was_shut_down(facts: Facts) -> Iterator[Outcome]:
    """The system drive is not marked as in use, hiberfil.sys is not to be resumed from, and the hives SYSTEM and
    SOFTWARE were written to their end.
    """
    windows = windows_of(facts)
    if windows.storage.unclean:
        yield failed(windows.storage.unclean, "start it, let chkdsk finish, and shut it down: shutdown /s /t 0")
    if windows.storage.hibernated:
        yield failed(windows.storage.hibernated, "powercfg /h off, then shutdown /s /t 0")
    for reason in windows.registry.unclean:
        yield failed(reason, "start it and shut it down: shutdown /s /t 0")
    yield passed(f"{windows.files.volume} was taken out of use properly")


@check("VMIE-WIN-26")
def security_software_is_off(facts: Facts) -> Iterator[Outcome]:
    """No service of known anti-virus software starts by itself. A firewall that is on is a note only, since
    VMIE-WIN-09 checks what it lets in.
    """
    windows = windows_of(facts)
    for service in windows.services.security_software:
        yield failed(
            f"{service.product}: {service}", f"sc config {service.name} start= disabled, until the import is done"
        )
    for profile in REACHED_PROFILES:
        enabled = windows.network.firewall_enabled(profile)
        if enabled.integer == 1:
            yield failed(
                f"{enabled}: the firewall is on for the profile {PROFILES[profile]}",
                "netsh advfirewall set allprofiles state off, until the import is done",
                severity=Severity.INFO,
            )
    yield passed("no known security software starts by itself")


@check("VMIE-WIN-27")
def not_hardened(facts: Facts) -> Iterator[Outcome]:
    """No policy restricts the installation of devices or programs: DeviceInstall\\Restrictions, AppLocker, software
    restriction, code integrity, FIPS.
    """
    windows = windows_of(facts)
    for name in DENYING:
        reading = windows.software(INSTALL_RESTRICTIONS, name)
        if reading.integer:
            yield failed(str(reading))
    for kind in windows.registry.names(SOFTWARE, APPLOCKER):
        mode = windows.software(rf"{APPLOCKER}\{kind}", "EnforcementMode")
        if mode.integer == 1:
            yield failed(str(mode))
    level = windows.software(SOFTWARE_RESTRICTION, "DefaultLevel")
    if level.exists and level.integer == DISALLOWED:
        yield failed(str(level))
    fips = windows.system(FIPS, "Enabled")
    if fips.integer:
        yield failed(str(fips))
    if windows.files.entry(windows.folder + CODE_INTEGRITY) is not None:
        yield failed(f"{windows.files.volume}: {windows.folder}{CODE_INTEGRITY} is there: a code integrity policy")
    yield passed("no policy is known to keep drivers and services out")


@check("VMIE-WIN-31")
def activation(facts: Facts) -> Iterator[Outcome]:
    """EditionID is no evaluation, and BuildLabEx and BuildLab name no preview."""
    version = windows_of(facts).version
    edition = version.read("EditionID")
    if "eval" in (edition.text or "").lower():
        yield failed(str(edition), "convert it: dism /online /Set-Edition:ServerStandard /ProductKey:... /AcceptEula")
    for name in ("BuildLabEx", "BuildLab"):
        label = version.read(name)
        if PREVIEW.search(label.text or ""):
            yield failed(str(label), "install a released version")
    yield passed(str(edition))
