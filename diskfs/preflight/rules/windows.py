"""VMIE-WIN: how Windows is set up, as its registry and its system drive show it."""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Operation
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs.preflight.rules.windows_systems import windows_of
from diskfs.preflight.windows.bcd import HYPERVISOR_AUTO, HYPERVISOR_LAUNCH
from diskfs.preflight.windows.network import PROFILES, REACHED_PROFILES
from diskfs.preflight.windows.readings import Reading
from diskfs.preflight.windows.services import SERVICES
from diskfs.preflight.windows.storage import drive_of
from diskfs.preflight.windows.version import CURRENT_VERSION, ENGLISH_US
from diskfs_formats.findings import Severity

FREE_SPACE = 6 << 30
"""Bytes that the root volume must have free."""
WINLOGON = CURRENT_VERSION + r"\Winlogon"
TIME_ZONE = r"CurrentControlSet\Control\TimeZoneInformation"
HYPERVISOR_SERVICE = "vmms"
MEMORY_COMMAND = (
    'wmic computersystem set AutomaticManagedPagefile=False, then wmic pagefileset where name="C:\\\\pagefile.sys" '
    "set InitialSize=4096,MaximumSize=4096"
)
MAX_SHOWN = 8


@check("VMIE-WIN-01")
def free_space(facts: Facts) -> Iterator[Outcome]:
    """The NTFS of the system drive has at least 6 GiB free."""
    files = windows_of(facts).files
    if files.free is None:
        yield unknown(f"{files.volume}: how much is free is not known")
    elif files.free < FREE_SPACE:
        yield failed(f"{files.volume} has {files.free} of {files.size} bytes free; {FREE_SPACE} are needed")
    else:
        yield passed(f"{files.volume} has {files.free} of {files.size} bytes free")


@check("VMIE-WIN-02")
def fixed_page_file(facts: Facts) -> Iterator[Outcome]:
    """Every page file in PagingFiles has a minimum and an equal maximum."""
    storage = windows_of(facts).storage
    for page_file in storage.page_files:
        if not page_file.is_fixed:
            yield failed(f"{storage.page_file_setting}: {page_file}", f"set a fixed size: {MEMORY_COMMAND}")
    yield passed(str(storage.page_file_setting))


@check("VMIE-WIN-03")
def page_files_not_automatic(facts: Facts) -> Iterator[Outcome]:
    """PagingFiles does not leave the page files of all drives to Windows: `?:\\pagefile.sys`."""
    storage = windows_of(facts).storage
    for page_file in storage.page_files:
        if page_file.is_automatic:
            yield failed(str(storage.page_file_setting), f"set a fixed size: {MEMORY_COMMAND}")
    yield passed(str(storage.page_file_setting))


@check("VMIE-WIN-04")
def sr_iov_drivers(facts: Facts) -> Iterator[Outcome]:
    """States whether it is Windows Server 2012 R2, for which the import installs SR-IOV drivers."""
    version = windows_of(facts).version
    if version.listed is None or version.listed.id != "ws2012r2":
        yield not_applicable("it is not Windows Server 2012 R2")
    else:
        yield passed(f"{version}: the import installs SR-IOV drivers")


@check("VMIE-WIN-06")
def english_language_pack(facts: Facts) -> Iterator[Outcome]:
    """MUI\\UILanguages has English only, and InstallLanguage is English. A computer name with characters beyond ASCII
    is a warning.
    """
    windows = windows_of(facts)
    languages = windows.version.languages
    installed, number = languages.ui[0]
    others = [pack for pack in languages.packs if not pack.lower().startswith("en-")]
    for pack in others[:MAX_SHOWN]:
        yield failed(
            f"{languages.packs_where} has {pack!r}",
            "remove it: lpksetup /u" + (f" {pack}" if pack.replace("-", "").isalnum() else ""),
        )
    if number is not None and number & 0x3FF != ENGLISH_US & 0x3FF:
        yield failed(f"{installed}; English (US) is 0409")
    name = windows.system(r"CurrentControlSet\Control\ComputerName\ComputerName", "ComputerName")
    if not (name.text or "").isascii():
        yield failed(str(name), "give the computer a name of ASCII letters", severity=Severity.WARNING)
    yield passed(f"{installed}; {languages.packs_where} has {', '.join(languages.packs[:MAX_SHOWN]) or 'none'}")


@check("VMIE-WIN-07")
def no_hyper_v(facts: Facts) -> Iterator[Outcome]:
    """A server has no service vmms, which is Hyper-V's own. A boot entry that starts the hypervisor without it
    (hypervisorlaunchtype Auto) is a note only: security features use it, too.
    """
    windows = windows_of(facts)
    if not windows.version.is_server:
        yield not_applicable("it is a client")
        return
    service = windows.services.get(HYPERVISOR_SERVICE)
    if service is not None:
        yield failed(str(service), "remove the role: Remove-WindowsFeature Hyper-V, and restart")
        return
    for store in windows.boot.stores:
        for entry in store.menu:
            if entry.number(HYPERVISOR_LAUNCH) == HYPERVISOR_AUTO:
                yield failed(entry.evidence(HYPERVISOR_LAUNCH, "hypervisorlaunchtype"), severity=Severity.INFO)
    yield passed(f"{windows.services.where(HYPERVISOR_SERVICE)} is not there")


@check("VMIE-WIN-08")
def remote_desktop(facts: Facts) -> Iterator[Outcome]:
    """fDenyTSConnections, of the policy or else of Terminal Server, is 0, and the service TermService can start."""
    windows = windows_of(facts)
    denied = windows.network.rdp_denied
    if denied.integer != 0:
        yield failed(
            str(denied),
            'enable it: reg add "HKLM\\SYSTEM\\CurrentControlSet\\Control\\Terminal Server" /v fDenyTSConnections '
            "/t REG_DWORD /d 0 /f",
        )
    service = windows.services.get("TermService")
    if service is None:
        yield failed(f"{windows.services.where('TermService')} is not there")
    elif service.is_disabled:
        yield failed(str(service), "sc config TermService start= demand")
    yield passed(str(denied))


@check("VMIE-WIN-09")
def firewall_lets_rdp_in(facts: Facts) -> Iterator[Outcome]:
    """For the public and the private profile the firewall is off, or an active rule (before Vista: a port list) lets
    TCP to the port of Remote Desktop in, and none keeps it out.
    """
    network = windows_of(facts).network
    port = network.rdp_port
    for profile in REACHED_PROFILES:
        enabled = network.firewall_enabled(profile)
        if enabled.integer == 0 or not (enabled.exists or network.firewall_rules):
            yield passed(str(enabled))
            continue
        blocking = next((rule for rule in network.firewall_rules if rule.blocks(port, PROFILES[profile])), None)
        if blocking is not None:
            yield failed(f"{network.firewall_where()}: {blocking.name} keeps TCP port {port} out ({PROFILES[profile]})")
            continue
        allowing = next((rule for rule in network.firewall_rules if rule.allows(port, PROFILES[profile])), None)
        listed = network.open_port(profile, port)
        if allowing is not None:
            yield passed(f"{network.firewall_where()}: {allowing.name} lets TCP port {port} in ({PROFILES[profile]})")
        elif listed is not None:
            yield passed(str(listed))
        else:
            yield failed(
                f"{enabled}, and no rule in {network.firewall_where()} lets TCP port {port} in ({PROFILES[profile]})",
                'netsh advfirewall firewall set rule group="remote desktop" new enable=Yes',
            )


@check("VMIE-WIN-10")
def passwords(facts: Facts) -> Iterator[Outcome]:
    """No account in SAM that can be used is without a stored password or needs none; where hashes are encrypted with
    AES (Windows 10 1607 and later), an empty password cannot be told from another.
    """
    undecided = []
    for account in windows_of(facts).accounts:
        if account.is_disabled:
            continue
        if account.has_password is False:
            yield failed(f"{account.where}: {account.name!r} has no password", _password_command(account.name))
        elif account.needs_no_password:
            yield failed(
                f"{account.where}: {account.name!r} may have no password (flag 0x0004)",
                _password_command(account.name),
                severity=Severity.WARNING,
            )
        elif account.has_password is None:
            undecided.append(account.name)
        else:
            yield passed(f"{account.where}: {account.name!r} has a password")
    if undecided:
        yield unknown(
            f"whether these have a password cannot be told from outside: {', '.join(map(repr, undecided[:8]))}"
        )


def _password_command(name: str) -> str:
    return f"net user {name} * (or net user {name} /active:no)"


@check("VMIE-WIN-13")
def no_autologon(facts: Facts) -> Iterator[Outcome]:
    """AutoAdminLogon of Winlogon is not 1."""
    reading = windows_of(facts).software(WINLOGON, "AutoAdminLogon")
    if (reading.text or str(reading.integer)).strip() == "1":
        yield failed(
            str(reading),
            'reg add "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Winlogon" /v AutoAdminLogon /d 0 /f',
        )
    yield passed(str(reading))


@check("VMIE-WIN-18")
def real_time_is_universal(facts: Facts) -> Iterator[Outcome]:
    """RealTimeIsUniversal of TimeZoneInformation is 1."""
    reading = windows_of(facts).system(TIME_ZONE, "RealTimeIsUniversal")
    if reading.integer != 1:
        yield failed(
            str(reading),
            "reg add HKLM\\SYSTEM\\CurrentControlSet\\Control\\TimeZoneInformation /v RealTimeIsUniversal "
            "/t REG_DWORD /d 1 /f",
        )
    yield passed(str(reading))


@check("VMIE-WIN-25")
def tcp_ip_and_dhcp(facts: Facts) -> Iterator[Outcome]:
    """The services Tcpip, AFD and Dhcp are there and not disabled, and no interface has EnableDHCP = 0 with a static
    address. An address that the import takes away is a warning.
    """
    windows = windows_of(facts)
    for name in ("Tcpip", "AFD", "Dhcp"):
        service = windows.services.get(name)
        if service is None:
            yield failed(f"{windows.services.where(name)} is not there")
        elif service.is_disabled:
            yield failed(str(service), f"sc config {name} start= {'auto' if name == 'Dhcp' else 'system'}")
        else:
            yield passed(str(service))
    for interface in windows.network.interfaces:
        if interface.is_static:
            yield failed(
                f"{interface.dhcp}, with {', '.join(interface.addresses[:MAX_SHOWN])}",
                "netsh interface ip set address name=Ethernet source=dhcp",
                severity=Severity.WARNING,
            )


@check("VMIE-WIN-29")
def drives_of_windows(facts: Facts) -> Iterator[Outcome]:
    """Active Directory's database and log files are on the system drive. Page files and services that start by
    themselves on another drive are a warning. A drive that is on one of the disks given counts with import-image only.
    """
    windows = windows_of(facts)
    needed: list[tuple[Reading, str, Severity | None]] = [
        (reading, drive_of(reading.text or ""), None) for reading in windows.storage.directory_files
    ]
    setting = windows.storage.page_file_setting
    needed += [(setting, drive_of(page_file.path), Severity.WARNING) for page_file in windows.storage.page_files]
    needed += [(reading, drive_of(reading.text or ""), Severity.WARNING) for reading in _images(facts)]
    together = facts.request.operation is Operation.IMPORT_IMAGE
    tables = [table for _, table in facts.partition_tables]
    for reading, drive, severity in needed:
        if drive in {"", windows.drive}:
            continue
        if together and windows.storage.partition_of(drive, tables) is not None:
            yield passed(f"{reading}: drive {drive}: is on one of the disks")
        else:
            yield failed(f"{reading}; the system drive is {windows.drive}:", severity=severity)
    yield passed(f"what Windows needs to start is on {windows.drive}:")


def _images(facts: Facts) -> Iterator[Reading]:
    """Yield the ImagePath of the services that start by themselves."""
    windows = windows_of(facts)
    services = windows.registry.key("SYSTEM", SERVICES)
    for key in services.subkeys() if services is not None else ():
        start = key.value("Start")
        if start is not None and start.integer in {0, 1, 2}:
            yield Reading(windows.services.where(key.name), "ImagePath", key.value("ImagePath"))
