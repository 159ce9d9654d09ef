"""How Windows is reached and how it gets its address: interfaces, Remote Desktop, the firewall."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from diskfs.preflight.windows.readings import SOFTWARE, SYSTEM, Reading, Registry

TERMINAL_SERVER = r"CurrentControlSet\Control\Terminal Server"
TERMINAL_POLICY = r"Policies\Microsoft\Windows NT\Terminal Services"
INTERFACES = r"CurrentControlSet\Services\Tcpip\Parameters\Interfaces"
FIREWALL = r"CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy"
FIREWALL_POLICY = r"Policies\Microsoft\WindowsFirewall"
PROFILES = {"DomainProfile": "Domain", "StandardProfile": "Private", "PublicProfile": "Public"}
"""The keys of the firewall's profiles, and what a firewall rule calls them."""
POLICY_PROFILES = {"StandardProfile": "PrivateProfile"}
RDP_PORT = 3389
TCP = "6"
RDP_SERVICE = "termservice"
SERVICE_HOSTS = ("svchost.exe", "system")
"""The programs of services, which a rule may name beside or instead of the service."""
MAX_RULES = 8192
MAX_RULE = 16384
"""Characters of one rule; Windows' own have a few hundred."""
REACHED_PROFILES = ("PublicProfile", "StandardProfile")
"""What a network that Windows has not met before is put into; the domain's profile needs the domain's network."""


@dataclass(frozen=True, slots=True)
class Interface:
    """The settings of one network interface, by the GUID of its key; most belong to adapters that are gone."""

    id: str
    dhcp: Reading
    address: Reading
    gateway: Reading
    name_server: Reading

    @property
    def addresses(self) -> tuple[str, ...]:
        """Static addresses, without the 0.0.0.0 that stands for none."""
        return tuple(address[:64] for address in self.address.texts or () if address not in {"0.0.0.0", "::"})  # noqa: S104

    @property
    def is_static(self) -> bool:
        return self.dhcp.integer == 0 and bool(self.addresses)


@dataclass(frozen=True, slots=True)
class FirewallRule:
    """One rule of the firewall: `v2.10|Action=Allow|Active=TRUE|Dir=In|Protocol=6|LPort=3389|App=...|`."""

    name: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, name: str, text: str) -> "FirewallRule":
        pairs = (field.partition("=") for field in text.split("|")[1:])
        return cls(name, tuple((key.lower(), value) for key, _, value in pairs if key))

    def all(self, key: str) -> list[str]:
        """Return the values of a field, which may be there several times."""
        return [value for name, value in self.fields if name == key]

    def first(self, key: str) -> str:
        return next(iter(self.all(key)), "")

    def allows(self, port: int, profile: str) -> bool:
        """Tell whether the rule lets TCP connections to a port in, for all programs or for Remote Desktop's service."""
        service, program = self.first("svc").lower(), self.first("app").lower()
        listens = service in {RDP_SERVICE, "*"} if service else not program or program.endswith(SERVICE_HOSTS)
        return self._is_active("allow", profile) and listens and (not self._ports or _has_port(self._ports, port))

    def blocks(self, port: int, profile: str) -> bool:
        """Tell whether the rule keeps TCP connections to a port out by its number; that goes before what allows it."""
        return self._is_active("block", profile) and _has_port(self._ports, port)

    @property
    def _ports(self) -> list[str]:
        return self.all("lport") + self.all("lport2_10")

    def _is_active(self, action: str, profile: str) -> bool:
        return (
            self.first("action").lower() == action
            and self.first("active").upper() == "TRUE"
            and self.first("dir").lower() == "in"
            and self.first("protocol") in {TCP, ""}
            and (not self.all("profile") or profile in self.all("profile"))
        )


class Network:
    """What the registry says of the network; methods raise what reading the hives raises."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @functools.cached_property
    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces with settings of their own."""
        return tuple(self._interfaces())

    def _interfaces(self) -> Iterator[Interface]:
        for name in self._registry.names(SYSTEM, INTERFACES):
            path = rf"{INTERFACES}\{name}"
            read = [self._registry.read(SYSTEM, path, value) for value in _INTERFACE_VALUES]
            if read[0].exists or read[1].exists:
                yield Interface(name, *read)

    @property
    def rdp_denied(self) -> Reading:
        """`fDenyTSConnections`: 0 lets users connect. The policy goes before the setting."""
        policy = self._registry.read(SOFTWARE, TERMINAL_POLICY, "fDenyTSConnections")
        return policy if policy.exists else self._registry.read(SYSTEM, TERMINAL_SERVER, "fDenyTSConnections")

    @property
    def rdp_port(self) -> int:
        """The TCP port of Remote Desktop."""
        path = TERMINAL_SERVER + r"\WinStations\RDP-Tcp"
        port = self._registry.read(SYSTEM, path, "PortNumber").integer
        return port if port is not None and 0 < port < 65536 else RDP_PORT

    def firewall_enabled(self, profile: str) -> Reading:
        """`EnableFirewall` of a profile, by its key; the policy goes before the setting."""
        policy = rf"{FIREWALL_POLICY}\{POLICY_PROFILES.get(profile, profile)}"
        reading = self._registry.read(SOFTWARE, policy, "EnableFirewall")
        return reading if reading.exists else self._registry.read(SYSTEM, rf"{FIREWALL}\{profile}", "EnableFirewall")

    @functools.cached_property
    def firewall_rules(self) -> tuple[FirewallRule, ...]:
        """The rules of the local store and of the policy; Windows before Vista has none."""
        return tuple(self._firewall_rules())

    def _firewall_rules(self) -> Iterator[FirewallRule]:
        for hive, path in ((SYSTEM, FIREWALL), (SOFTWARE, FIREWALL_POLICY)):
            key = self._registry.key(hive, rf"{path}\FirewallRules")
            for count, value in enumerate(key.values() if key is not None else ()):
                if count >= MAX_RULES:
                    break
                if value.text and len(value.text) <= MAX_RULE:
                    yield FirewallRule.parse(value.name, value.text)

    def open_port(self, profile: str, port: int) -> Reading | None:
        """Return the entry of a port list that opens a TCP port in a profile: Windows before Vista has such lists."""
        lists = rf"{FIREWALL}\{profile}\GloballyOpenPorts\List"
        reading = self._registry.read(SYSTEM, lists, f"{port}:TCP")
        return reading if ":enabled:" in (reading.text or "").lower() else None

    def firewall_where(self) -> str:
        """Return where the firewall's rules are."""
        return self._registry.where(SYSTEM, rf"{FIREWALL}\FirewallRules")


_INTERFACE_VALUES = ("EnableDHCP", "IPAddress", "DefaultGateway", "NameServer")


def _has_port(texts: list[str], port: int) -> bool:
    """Tell whether a port is in lists such as `3389` and `49152-65535`."""
    for text in ",".join(texts).split(","):
        low, _, high = text.partition("-")
        if low.isdecimal() and int(low[:6]) <= port <= int((high or low)[:6] if (high or low).isdecimal() else "0"):
            return True
    return False
