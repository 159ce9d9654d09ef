"""How a guest configures its network interfaces, in each of the ways that distributions have."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from diskfs.preflight.linux.text import SMALL_TEXT, Place, content_lines, ini_sections, shell_assignments
from diskfs.preflight.linux.tree import GuestTree

MAX_FILES = 200
MAX_YAML = 16 << 10
"""Characters; the parser is slow, and a real file has some hundred."""
MAX_YAML_FILES = 10
PREDICTABLE_NAME = re.compile(
    r"(?:en|wl|ww|sl|ib)(?:o\d+|s\d+|p\d+s\d+|x[0-9a-f]{12}|P\d+p\d+|[a-z]?\d+s\d+)[a-z0-9]*$|(?:em\d+|p\d+p\d+)(?:_\d+)?$"
)
"""Names that systemd's udev (ens3, enp0s3, eno1, enx...) or biosdevname (em1, p3p1) give."""
VIRTUAL_NAME = re.compile(
    r"(?:lo|bond|br|virbr|docker|veth|tun|tap|team|vlan|dummy|sit|wg|cni|vmnet|ppp|ib|wl)[a-z]*[\d:.\-]*|.*[.:]\d+$"
)


@dataclass(frozen=True, slots=True)
class InterfaceSetting:
    """One interface in one file. `manner` is `ifcfg`, `interfaces`, `netplan`, `networkmanager` or `networkd`."""

    manner: str
    name: str
    """As the file names it; empty or with `*` if it is for any interface."""
    place: Place
    is_dhcp: bool
    addresses: tuple[tuple[str, Place], ...] = ()
    """Static addresses and where they stand."""
    is_disabled: bool = False

    @property
    def is_loopback(self) -> bool:
        return self.name == "lo" or self.name.startswith("lo:")

    @property
    def is_physical(self) -> bool:
        """Tell whether the name is that of a network card, rather than of a bridge, a VLAN or a bond."""
        return not VIRTUAL_NAME.fullmatch(self.name)

    @property
    def is_predictable(self) -> bool:
        return bool(PREDICTABLE_NAME.fullmatch(self.name))


def read_interfaces(tree: GuestTree) -> list[InterfaceSetting]:
    """Return what all configuration files say, loopback left out. GuestError if one that is there cannot be read."""
    found: list[InterfaceSetting] = []
    for path in _ifcfg_files(tree):
        found += parse_ifcfg(tree.text(path, SMALL_TEXT) or "", path)
    for path in _interfaces_files(tree):
        found += parse_interfaces(tree.text(path, SMALL_TEXT) or "", path)
    for folder in ("/lib/netplan", "/etc/netplan", "/run/netplan"):
        for path in tree.names(folder, ".yaml")[:MAX_YAML_FILES]:
            found += parse_netplan(tree.text(path, SMALL_TEXT) or "", path)
    for folder in ("/etc/NetworkManager/system-connections", "/usr/lib/NetworkManager/system-connections"):
        for path in tree.names(folder)[:MAX_FILES]:
            if tree.is_file(path) and not path.endswith(("~", ".bak", ".rpmsave")):
                found += parse_keyfile(tree.text(path, SMALL_TEXT) or "", path)
    for path in tree.names("/etc/systemd/network", ".network")[:MAX_FILES]:
        found += parse_networkd(tree.text(path, SMALL_TEXT) or "", path)
    return [one for one in found if not one.is_loopback]


_IGNORED_IFCFG = re.compile(r".*(?:~|\.bak|\.orig|\.old|\.rpmnew|\.rpmorig|\.rpmsave|\.swp|\.template|\.scpmbackup)$")


def _ifcfg_files(tree: GuestTree) -> Iterator[str]:
    for folder in ("/etc/sysconfig/network-scripts", "/etc/sysconfig/network"):
        for path in tree.names(folder)[:MAX_FILES]:
            name = path.rpartition("/")[2]
            if name.startswith("ifcfg-") and not _IGNORED_IFCFG.match(name) and tree.is_file(path):
                yield path


def parse_ifcfg(text: str, path: str) -> Iterator[InterfaceSetting]:
    """Read Red Hat's and SUSE's ifcfg-NAME: shell assignments."""
    values = {key.upper(): value for key, value in shell_assignments(text).items()}
    name = values.get("DEVICE", (path.rpartition("/ifcfg-")[2], 0))[0]
    protocol = values.get("BOOTPROTO", ("", 0))[0].lower()
    addresses = tuple(
        (value, Place(path, line))
        for key, (value, line) in values.items()
        if re.fullmatch(r"IPADDR(?:_?\d+|_[A-Z0-9]+)?|IPV6ADDR(?:_SECONDARIES)?", key) and value
    )
    off = values.get("ONBOOT", ("yes", 0))[0].lower() in {"no", "false", "0"} or values.get("STARTMODE", ("", 0))[
        0
    ] in {"off", "manual"}
    line = values.get("BOOTPROTO", ("", 0))[1]
    is_dhcp = protocol.startswith("dhcp") or protocol in {"bootp", "dhcp4"}
    yield InterfaceSetting("ifcfg", name, Place(path, line), is_dhcp, () if is_dhcp else addresses, off)


def _interfaces_files(tree: GuestTree) -> list[str]:
    main = "/etc/network/interfaces"
    text = tree.text(main)
    if text is None:
        return []
    found = [main]
    for _, line in content_lines(text):
        word, *rest = line.split()
        if word in {"source", "source-directory"} and rest:
            folder, _, pattern = rest[0].rpartition("/")
            if word == "source-directory":
                folder, pattern = rest[0], "*"
            folder = folder if folder.startswith("/") else f"/etc/network/{folder}"
            for path in tree.names(folder)[:MAX_FILES]:
                name = path.rpartition("/")[2]
                if tree.is_file(path) and (
                    re.fullmatch(r"[A-Za-z0-9_-]+", name) if pattern == "*" else _globbed(name, pattern)
                ):
                    found.append(path)
    return found[:MAX_FILES]


def _globbed(name: str, pattern: str) -> bool:
    if pattern.count("*") > 4:
        return False
    return bool(re.fullmatch(".*".join(re.escape(piece) for piece in pattern.split("*")), name[:255]))


def parse_interfaces(text: str, path: str) -> Iterator[InterfaceSetting]:
    """Read Debian's interfaces(5): stanzas begin with iface, auto, allow-..., mapping or source."""
    name, method, line, is_inet = "", "", 0, True
    addresses: list[tuple[str, Place]] = []

    def finished() -> Iterator[InterfaceSetting]:
        if not name or not is_inet:
            return
        here = Place(path, line)
        # A static stanza is one even where its address is on no line of its own.
        static = (tuple(addresses) or (("", here),)) if method == "static" else ()
        yield InterfaceSetting("interfaces", name, here, method in {"dhcp", "auto", "bootp"}, static)

    for number, content in content_lines(text):
        words = content.split()
        if words[0] == "iface":
            yield from finished()
            name, family, method = ([*words[1:], "", "", ""])[:3]
            line, is_inet, addresses = number, family in {"inet", "inet6", ""}, []
        elif words[0] in {"auto", "mapping", "source", "source-directory", "template"} or words[0].startswith("allow-"):
            yield from finished()
            name = ""
        elif words[0] == "address" and len(words) > 1:
            addresses.append((words[1], Place(path, number)))
    yield from finished()


def parse_netplan(text: str, path: str) -> Iterator[InterfaceSetting]:
    """Read netplan's YAML; what is none, or is too long, gives nothing."""
    if len(text) > MAX_YAML:
        return
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return
    network = document.get("network") if isinstance(document, dict) else None
    if not isinstance(network, dict):
        return
    lines = text.split("\n")
    for kind in ("ethernets", "bonds", "bridges", "vlans", "wifis"):
        group = network.get(kind)
        if not isinstance(group, dict):
            continue
        for key, value in list(group.items())[:MAX_FILES]:
            settings = value if isinstance(value, dict) else {}
            match = settings.get("match")
            name = str(settings.get("set-name") or (match.get("name") if isinstance(match, dict) else None) or key)[
                :100
            ]
            addresses = settings.get("addresses")
            found = tuple(
                (text_of, Place(path, _line_with(lines, text_of)))
                for item in (addresses if isinstance(addresses, list) else [])[:64]
                for text_of in [str(next(iter(item), "") if isinstance(item, dict) else item)[:100]]
            )
            is_dhcp = settings.get("dhcp4") is True or settings.get("dhcp6") is True
            yield InterfaceSetting("netplan", name, Place(path, _line_with(lines, f"{key}:")), is_dhcp, found)


def _line_with(lines: list[str], text: str) -> int:
    return next((number for number, line in enumerate(lines, 1) if text in line), 0)


def parse_keyfile(text: str, path: str) -> Iterator[InterfaceSetting]:
    """Read a NetworkManager connection in keyfile form."""
    values: dict[tuple[str, str], tuple[str, int]] = {}
    for section, key, value, line in ini_sections(text):
        if len(values) < 2_000:
            values[section, key] = (value, line)
    kind = values.get(("connection", "type"), ("", 0))[0]
    if kind not in {"ethernet", "802-3-ethernet", ""}:
        return
    name = values.get(("connection", "interface-name"), ("", 0))[0]
    method, line = values.get(("ipv4", "method"), ("auto", 0))
    addresses = tuple(
        (value.partition(",")[0], Place(path, number))
        for (section, key), (value, number) in values.items()
        if section in {"ipv4", "ipv6"} and re.fullmatch(r"address(?:es)?\d*", key) and value
        and values.get((section, "method"), ("", 0))[0] == "manual"
    )  # fmt: skip
    off = values.get(("connection", "autoconnect"), ("true", 0))[0] == "false"
    yield InterfaceSetting("networkmanager", name, Place(path, line), method == "auto", addresses, off)


def parse_networkd(text: str, path: str) -> Iterator[InterfaceSetting]:
    """Read a .network file of systemd-networkd."""
    name, is_dhcp, line = "", False, 0
    addresses = []
    for section, key, value, number in ini_sections(text):
        if section == "Match" and key == "Name":
            name = value
        elif section == "Network" and key == "DHCP":
            is_dhcp, line = value.lower() in {"yes", "true", "ipv4", "ipv6", "both", "1", "on"}, number
        elif (section, key) in {("Network", "Address"), ("Address", "Address")}:
            addresses.append((value, Place(path, number)))
    yield InterfaceSetting("networkd", name, Place(path, line), is_dhcp, tuple(addresses))
