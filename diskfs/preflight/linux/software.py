"""Software that the import cares about: VMware Tools, anti-virus and intrusion detection, DHCP clients, packages."""

import re
from dataclasses import dataclass

from diskfs.preflight.linux.services import Services
from diskfs.preflight.linux.text import Place, content_lines
from diskfs.preflight.linux.tree import GuestTree

VMWARE_TOOLS = ("/usr/bin/vmware-uninstall-tools.pl", "/usr/sbin/vmware-guestd", "/etc/vmware-tools/locations")
OPEN_VM_TOOLS = ("/usr/bin/vmtoolsd", "/usr/sbin/vmtoolsd")

SECURITY_SERVICES = {
    "clamav-daemon": "ClamAV", "clamd": "ClamAV", "clamd@scan": "ClamAV", "clamav-freshclam": "ClamAV",
    "falcon-sensor": "CrowdStrike Falcon", "ds_agent": "Trend Micro Deep Security", "mdatp": "Microsoft Defender",
    "sav-protect": "Sophos Anti-Virus", "sophos-spl": "Sophos Protection", "esets": "ESET", "eea": "ESET",
    "efs": "ESET", "ossec": "OSSEC", "ossec-hids": "OSSEC", "wazuh-agent": "Wazuh", "cbdaemon": "Carbon Black",
    "cbagentd": "Carbon Black", "sentinelone": "SentinelOne", "sentinelagent": "SentinelOne", "mfetpd": "Trellix",
    "nails": "McAfee VirusScan", "mfeespd": "Trellix", "symcfgd": "Symantec", "sisamdagent": "Symantec",
    "rtvscand": "Symantec", "cylancesvc": "Cylance", "traps_pmd": "Cortex XDR", "snort": "Snort",
    "suricata": "Suricata", "aide": "AIDE", "tripwire": "Tripwire", "samhain": "Samhain", "bdsec": "Bitdefender",
    "kesl": "Kaspersky", "drweb-configd": "Dr.Web", "fapolicyd": "fapolicyd",
}  # fmt: skip
"""Services of anti-virus and intrusion detection software by their units' names."""

DHCP_CLIENTS = (
    ("/sbin/dhclient", ()), ("/usr/sbin/dhclient", ()), ("/usr/bin/dhclient", ()), ("/sbin/dhcpcd", ()),
    ("/usr/sbin/dhcpcd", ()), ("/sbin/udhcpc", ()), ("/usr/sbin/udhcpc", ()), ("/usr/bin/udhcpc", ()),
    ("/usr/sbin/NetworkManager", ("NetworkManager",)), ("/usr/bin/NetworkManager", ("NetworkManager",)),
    ("/usr/lib/systemd/systemd-networkd", ("systemd-networkd",)),
    ("/lib/systemd/systemd-networkd", ("systemd-networkd",)), ("/usr/sbin/wicked", ("wickedd-dhcp4", "wicked")),
    ("/sbin/pump", ()),
)  # fmt: skip
"""Programs that ask for an address, and the services that they need to be started by, where they are services."""


MAX_LISTS = 8
"""Lists of dpkg that are looked into for one kernel."""


@dataclass(frozen=True, slots=True)
class Found:
    name: str
    place: Place


def vmware_tools(tree: GuestTree) -> list[Found]:
    """Return traces of VMware Tools and of open-vm-tools, which take their place."""
    found = [Found("VMware Tools", Place(path)) for path in VMWARE_TOOLS if tree.exists(path)]
    return found + [Found("open-vm-tools", Place(path)) for path in OPEN_VM_TOOLS if tree.exists(path)]


def security_software(services: Services) -> list[Found]:
    """Return the anti-virus and intrusion detection services that are started at boot."""
    found = []
    for unit, path in services.enabled_links().items():
        name = SECURITY_SERVICES.get(unit.removesuffix(".service"))
        if name is None and unit.startswith("sophos"):
            name = "Sophos"
        if name is not None:
            found.append(Found(name, Place(path)))
    for script, path in services.rc_links().items():
        if script in SECURITY_SERVICES:
            found.append(Found(SECURITY_SERVICES[script], Place(path)))
    return found


@dataclass(frozen=True, slots=True)
class DhcpClient:
    path: str
    is_masked: bool
    evidence: Place


def dhcp_clients(tree: GuestTree, services: Services) -> list[DhcpClient]:
    """Return the programs that can get an address; one whose service is masked cannot."""
    found = []
    for path, names in DHCP_CLIENTS:
        if not tree.exists(path):
            continue
        state = services.state(*names) if names else None
        masked = state is not None and state.is_masked
        evidence = state.evidence if state is not None and masked and state.evidence else Place(path)
        found.append(DhcpClient(path, masked, evidence))
    return found


def packages_of_kernel(tree: GuestTree, release: str) -> Place | None:
    """Return where a package database says who brought this kernel; None if it does not, or is not read.

    dpkg's lists of files and the BLS and yum names are looked at; RPM's database is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9.+~_-]{1,100}", release):
        return None
    paths = [path for path in tree.names("/var/lib/dpkg/info", ".list") if release in path]
    for path in [path for path in paths if "/linux-image" in path or "/linux-modules" in path][:MAX_LISTS]:
        for number, line in content_lines(tree.text(path) or ""):
            if line == f"/boot/vmlinuz-{release}":
                return Place(path, number)
    return None
