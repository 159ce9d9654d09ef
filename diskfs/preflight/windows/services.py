"""The services and drivers of Windows: whether they start, and which of them are known to stand in the way."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from diskfs.preflight.windows.readings import SYSTEM, Reading, Registry

SERVICES = r"CurrentControlSet\Services"
DISABLED = 4
START_NAMES = {0: "boot", 1: "system", 2: "automatic", 3: "on demand", 4: "disabled"}

SECURITY_SERVICES = {
    "windefend": "Microsoft Defender", "sense": "Microsoft Defender for Endpoint", "msmpsvc": "Microsoft Antimalware",
    "symefasi": "Symantec", "sepmasterservice": "Symantec Endpoint Protection", "navex15": "Symantec",
    "ccsvchst": "Symantec", "mcshield": "McAfee", "masvc": "Trellix Agent", "mfefire": "McAfee", "mfemms": "McAfee",
    "csagent": "CrowdStrike Falcon", "csfalconservice": "CrowdStrike Falcon", "sentinelagent": "SentinelOne",
    "sentinelmonitor": "SentinelOne", "cbdefense": "Carbon Black", "carbonblack": "Carbon Black",
    "ds_agent": "Trend Micro Deep Security", "ntrtscan": "Trend Micro OfficeScan", "tmlisten": "Trend Micro",
    "amsp": "Trend Micro", "savservice": "Sophos", "sophos endpoint defense service": "Sophos", "savonaccess": "Sophos",
    "hmpalertsvc": "Sophos", "ekrn": "ESET", "ekrnepfw": "ESET", "avp": "Kaspersky", "klif": "Kaspersky",
    "bdservicehost": "Bitdefender", "epsecurityservice": "Bitdefender", "vsserv": "Bitdefender",
    "avastsvc": "Avast", "avast! antivirus": "Avast", "avgsvc": "AVG", "antivirservice": "Avira",
    "fshoster": "WithSecure", "fsma": "F-Secure", "pavsrv": "Panda", "panda_url_filtering": "Panda",
    "cyserver": "Cortex XDR", "cyveraservice": "Cortex XDR", "cylancesvc": "Cylance", "mbamservice": "Malwarebytes",
    "clamav": "ClamAV", "clamd": "ClamAV", "ossecsvc": "OSSEC", "wazuhsvc": "Wazuh", "wrsvc": "Webroot",
    "xagt": "Trellix Endpoint Security", "tanium client": "Tanium", "elastic endpoint": "Elastic Endpoint",
}  # fmt: skip
"""Services of anti-virus and intrusion-detection software, lower case, and what they belong to."""

VMWARE_SERVICES = ("VMTools", "VGAuthService", "vm3dservice", "VMwareCAFManagementAgentHost")
VMWARE_TOOLS = r"VMware, Inc.\VMware Tools"
"""The key of VMware Tools in the SOFTWARE hive."""
CONVERTER_SERVICES = ("vmware-converter-agent", "vmware-converter-worker", "vmware-ufad-p2v")
NITRO_DRIVERS = {"ena": ("ena",), "NVMe": ("AWSNVMe", "stornvme")}
EC2_AGENTS = {"EC2Launch": ("Amazon EC2Launch", "AmazonEC2Launch"), "EC2Config": ("Ec2Config",)}
"""The services of the programs that run Sysprep in EC2: EC2Launch v2, and EC2Config up to Windows Server 2012 R2."""
ANTI_VIRUS_GROUP = "FSFilter Anti-Virus"


@dataclass(frozen=True, slots=True)
class Service:
    """One service or driver, by the name of its key."""

    name: str
    start: Reading
    product: str = ""

    @property
    def starts(self) -> bool:
        """Whether Windows starts it by itself: at boot, with the system, or automatically."""
        return self.start.integer in {0, 1, 2}

    @property
    def is_disabled(self) -> bool:
        return self.start.integer == DISABLED

    def __str__(self) -> str:
        number = self.start.integer
        meaning = START_NAMES.get(number, "no such start type") if number is not None else ""
        return f"{self.start}{f' ({meaning})' if meaning else ''}"


class Services:
    """The services of the control set that boots; methods raise what reading the hive raises."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def get(self, name: str) -> Service | None:
        """Return a service by the name of its key, or None if it is not installed."""
        path = rf"{SERVICES}\{name}"
        if not self._registry.has(SYSTEM, path):
            return None
        return Service(name, self._registry.read(SYSTEM, path, "Start"))

    def where(self, name: str) -> str:
        """Return where a service would be."""
        return self._registry.where(SYSTEM, rf"{SERVICES}\{name}")

    def ec2_agent(self, name: str) -> Service | None:
        """Return the service of `EC2Launch` or `EC2Config`, None if it is not installed."""
        return next((found for key in EC2_AGENTS[name] if (found := self.get(key)) is not None), None)

    @functools.cached_property
    def security_software(self) -> tuple[Service, ...]:
        """Anti-virus and intrusion-detection software that starts by itself: by name, and by its group of filters."""
        return tuple(self._security_software())

    def _security_software(self) -> Iterator[Service]:
        services = self._registry.key(SYSTEM, SERVICES)
        if services is None:
            return
        for key in services.subkeys():
            product = SECURITY_SERVICES.get(key.name.lower(), "")
            if not product:
                group = key.value("Group")
                if group is None or (group.text or "").lower() != ANTI_VIRUS_GROUP.lower():
                    continue
                product = f"a driver of the group {ANTI_VIRUS_GROUP}"
            start = Reading(self.where(key.name), "Start", key.value("Start"))
            service = Service(key.name, start, product)
            if service.starts:
                yield service
