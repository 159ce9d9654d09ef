"""Whether a guest's own firewall lets SSH in: iptables' saved rules, nftables, ufw, firewalld, SuSEfirewall2.

Only plain cases are decided: whether any rule accepts the port, and whether without one the packet is dropped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from diskfs.preflight.linux.services import Services
from diskfs.preflight.linux.text import Place, content_lines, shell_assignments
from diskfs.preflight.linux.tree import GuestTree

MAX_XML = 256 << 10
MAX_CHAINS = 100
"""Chains that are followed into each other."""


@dataclass(frozen=True, slots=True)
class FirewallVerdict:
    """One firewall that is on. `allows` is None where it cannot be told."""

    kind: str
    place: Place
    allows: bool | None
    reason: str


def read_firewalls(tree: GuestTree, services: Services, ports: tuple[int, ...]) -> Iterator[FirewallVerdict]:
    """Yield what each firewall that is started at boot does with connections to `ports`."""
    for path, names in (
        ("/etc/sysconfig/iptables", ("iptables",)),
        ("/etc/iptables/rules.v4", ("netfilter-persistent", "iptables-persistent")),
        ("/etc/iptables/iptables.rules", ("iptables",)),
    ):
        text = tree.text(path)
        if text is not None and services.state(*names).is_enabled:
            yield judge_iptables(text, path, ports)
    for path in ("/etc/nftables.conf", "/etc/sysconfig/nftables.conf"):
        text = tree.text(path)
        if text is not None and services.state("nftables").is_enabled:
            yield judge_nftables(text, path, ports)
    yield from _ufw(tree, ports)
    yield from _firewalld(tree, services, ports)
    if services.state("SuSEfirewall2", "SuSEfirewall2_setup").is_enabled:
        yield from _suse(tree, ports)


def judge_iptables(text: str, path: str, ports: tuple[int, ...]) -> FirewallVerdict:
    """Follow the INPUT chain of what iptables-save wrote, rule by rule; jumps to other chains are followed too."""
    chains: dict[str, list[tuple[int, str]]] = {}
    policy, policy_line, in_filter = "ACCEPT", 0, True
    for number, line in content_lines(text):
        if line.startswith("*"):
            in_filter = line == "*filter"
        elif in_filter and line.startswith(":INPUT "):
            policy, policy_line = line.split()[1], number
        elif in_filter and (match := re.match(r"(?:-A|--append)\s+(\S+)\s*(.*)", line)):
            chains.setdefault(match[1], []).append((number, match[2]))
    decided = _iptables_chain(chains, "INPUT", ports, set())
    if decided is not None:
        number, allows = decided
        return FirewallVerdict("iptables", Place(path, number), allows, "the first rule that new SSH connections meet")
    return FirewallVerdict("iptables", Place(path, policy_line), policy == "ACCEPT", f"the policy of INPUT is {policy}")


def _iptables_chain(
    chains: dict[str, list[tuple[int, str]]], name: str, ports: tuple[int, ...], seen: set[str]
) -> tuple[int, bool] | None:
    """Return the line that decides and whether it accepts; None if the packet comes back from the chain."""
    seen.add(name)
    for number, rule in chains.get(name, ())[:5_000]:
        target = re.search(r"(?:-j|--jump|-g)\s+(\S+)", rule)
        if target is None or not _meets_ssh(rule, ports):
            continue
        if target[1] == "ACCEPT":
            return number, True
        if target[1] in {"DROP", "REJECT"}:
            return number, False
        # A chain that let the packet pass once does so again.
        if target[1] in chains and target[1] not in seen and len(seen) < MAX_CHAINS:
            decided = _iptables_chain(chains, target[1], ports, seen)
            if decided is not None:
                return decided
    return None


def _meets_ssh(rule: str, ports: tuple[int, ...]) -> bool:
    """Tell whether a new connection to one of the ports, from anywhere and over the network, matches the rule."""
    if re.search(r"(?:^|\s)(?:-i|--in-interface)\s+lo\b", rule) or re.search(
        r"(?:^|\s)(?:-s|--source)\s+(?!0\.0\.0\.0/0)", rule
    ):
        return False
    protocol = re.search(r"(?:-p|--protocol)\s+(\S+)", rule)
    if protocol and protocol[1] not in {"tcp", "6", "all"}:
        return False
    states = re.search(r"--(?:state|ctstate)\s+(\S+)", rule)
    if states and "NEW" not in states[1].split(","):
        return False
    wanted = re.search(r"--(?:dport|dports|destination-port|destination-ports)\s+(\S+)", rule)
    return wanted is None or any(_in_ports(port, wanted[1]) for port in ports)


def _in_ports(port: int, ports: str) -> bool:
    for item in ports.split(","):
        first, _, last = item.replace("-", ":").partition(":")
        low = 22 if first == "ssh" else int(first) if first.isascii() and first.isdigit() and len(first) < 6 else -1
        high = int(last) if last.isascii() and last.isdigit() and len(last) < 6 else low
        if low <= port <= high:
            return True
    return False


def judge_nftables(text: str, path: str, ports: tuple[int, ...]) -> FirewallVerdict:
    """Look for an input hook that drops by policy, and for a rule that accepts the port."""
    policy_line = accepts = hook_line = 0
    drops = False
    for number, line in content_lines(text):
        if re.search(r"\bhook\s+input\b", line):
            hook_line = number
            if re.search(r"\bpolicy\s+drop\b", line):
                drops, policy_line = True, number
        elif re.search(r"\bpolicy\s+drop\b", line) and hook_line and number - hook_line <= 2:
            drops, policy_line = True, number
        match = re.search(r"\btcp\s+dport\s+(?:\{([^}]*)\}|(\S+)).*\baccept\b", line)
        if match and any(_in_ports(port, (match[1] or match[2]).replace(" ", "")) for port in ports):
            accepts = accepts or number
    if accepts or not drops:
        return FirewallVerdict(
            "nftables", Place(path, accepts), True, "SSH is accepted" if accepts else "nothing drops by default"
        )
    return FirewallVerdict(
        "nftables", Place(path, policy_line), False, "the input policy is drop and no rule accepts SSH"
    )


def _ufw(tree: GuestTree, ports: tuple[int, ...]) -> Iterator[FirewallVerdict]:
    path = "/etc/ufw/ufw.conf"
    values = shell_assignments(tree.text(path) or "")
    enabled, line = values.get("ENABLED", ("no", 0))
    if enabled.lower() != "yes":
        return
    defaults = shell_assignments(tree.text("/etc/default/ufw") or "")
    if defaults.get("DEFAULT_INPUT_POLICY", ("DROP", 0))[0] == "ACCEPT":
        yield FirewallVerdict("ufw", Place("/etc/default/ufw"), True, "incoming connections are accepted by default")
        return
    for rules in ("/etc/ufw/user.rules", "/lib/ufw/user.rules"):
        for number, content in content_lines(tree.text(rules) or ""):
            match = re.match(r"-A\s+ufw-user-input\s+(.*)", content)
            if match and re.search(r"-j\s+(?:ACCEPT|ufw-user-limit\S*)", match[1]) and _meets_ssh(match[1], ports):
                yield FirewallVerdict("ufw", Place(rules, number), True, "SSH is accepted")
                return
    yield FirewallVerdict("ufw", Place(path, line), False, "ufw is on and no rule of user.rules accepts SSH")


def _firewalld(tree: GuestTree, services: Services, ports: tuple[int, ...]) -> Iterator[FirewallVerdict]:
    if not services.state("firewalld").is_enabled:
        return
    configuration = "/etc/firewalld/firewalld.conf"
    zone, line = shell_assignments(tree.text(configuration) or "").get("DefaultZone", ("public", 0))
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", zone):
        zone = "public"
    for folder in ("/etc/firewalld/zones", "/usr/lib/firewalld/zones"):
        path = f"{folder}/{zone}.xml"
        text = tree.text(path)
        if text is not None:
            yield _judge_zone(text, path, ports)
            return
    # The zones of the package accept ssh, all but block and drop.
    allows = zone not in {"block", "drop"}
    yield FirewallVerdict("firewalld", Place(configuration, line), allows, f"the default zone is {zone}")


def _judge_zone(text: str, path: str, ports: tuple[int, ...]) -> FirewallVerdict:
    try:
        if len(text) > MAX_XML:
            raise ValueError(f"it is longer than {MAX_XML} characters")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, DefusedXmlException, ValueError, RecursionError) as error:
        return FirewallVerdict("firewalld", Place(path), None, f"the zone cannot be read: {error}")
    if root.get("target") == "ACCEPT":
        return FirewallVerdict("firewalld", Place(path), True, "the zone accepts everything")
    if 22 in ports and any(one.get("name") == "ssh" for one in root.iter("service")):
        return FirewallVerdict("firewalld", Place(path), True, "the zone has the service ssh")
    for one in root.iter("port"):
        if one.get("protocol") == "tcp" and any(_in_ports(port, one.get("port") or "") for port in ports):
            return FirewallVerdict("firewalld", Place(path), True, f"the zone opens port {one.get('port')}")
    return FirewallVerdict("firewalld", Place(path), False, "the zone neither has the service ssh nor opens its port")


def _suse(tree: GuestTree, ports: tuple[int, ...]) -> Iterator[FirewallVerdict]:
    path = "/etc/sysconfig/SuSEfirewall2"
    values = shell_assignments(tree.text(path) or "")
    services, line = values.get("FW_CONFIGURATIONS_EXT", ("", 0))
    open_ports, ports_line = values.get("FW_SERVICES_EXT_TCP", ("", 0))
    allows = "sshd" in services.split() or any(_in_ports(port, open_ports.replace(" ", ",")) for port in ports)
    yield FirewallVerdict(
        "SuSEfirewall2",
        Place(path, line or ports_line),
        allows,
        "sshd is " + ("" if allows else "not ") + "open to the outside",
    )
