"""Network configuration, services, SSH and firewalls of a guest, in every form that distributions have."""

from pathlib import Path

import pytest

from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.linux.firewall import judge_iptables, judge_nftables, read_firewalls
from diskfs.preflight.linux.network import InterfaceSetting, read_interfaces
from diskfs.preflight.linux.services import Services
from diskfs.preflight.linux.ssh import Ssh, parse_passwd
from diskfs.preflight.linux.tree import GuestTree, Prefixed

DHCP, STATIC = True, False


def _tree(folder: Path, files: dict[str, str]) -> GuestTree:
    for name, text in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
    return GuestTree({"/": Prefixed(FolderFiles(folder), "")})


IFCFG = "/etc/sysconfig/network-scripts/ifcfg-"
SUSE = "/etc/sysconfig/network/ifcfg-"
NM = "/etc/NetworkManager/system-connections/"
NETPLAN = """network:
  version: 2
  ethernets:
    eth0:
      dhcp4: true
    ens4:
      addresses:
        - 192.0.2.9/24
        - 2001:db8::9/64: {lifetime: 0}
    x:
      match: {name: "en*"}
      dhcp4: true
"""

CASES: dict[str, tuple[dict[str, str], list[tuple[str, bool, list[str]]]]] = {
    "ifcfg dhcp": ({f"{IFCFG}eth0": "DEVICE=eth0\nBOOTPROTO=dhcp\nONBOOT=yes\n"}, [("eth0", DHCP, [])]),
    "ifcfg static": (
        {f"{IFCFG}eth0": 'DEVICE="eth0"\nBOOTPROTO=none\nIPADDR0=192.0.2.7\nPREFIX0=24\nIPADDR2=192.0.2.8\n'},
        [("eth0", STATIC, ["192.0.2.7", "192.0.2.8"])],
    ),
    "ifcfg without device": (
        {f"{IFCFG}ens33": "BOOTPROTO='static'\nIPADDR=192.0.2.7\n"}, [("ens33", STATIC, ["192.0.2.7"])]
    ),
    "ifcfg of loopback and backups": (
        {f"{IFCFG}lo": "DEVICE=lo\nIPADDR=127.0.0.1\n", f"{IFCFG}eth0.bak": "IPADDR=192.0.2.7\n"}, []
    ),
    "ifcfg of SUSE": (
        {f"{SUSE}eth0": "BOOTPROTO='static'\nSTARTMODE='auto'\nIPADDR='192.0.2.7/24'\nIPADDR_1='192.0.2.8/24'\n"},
        [("eth0", STATIC, ["192.0.2.7/24", "192.0.2.8/24"])],
    ),
    "interfaces": (
        {
            "/etc/network/interfaces": "source interfaces.d/*\nauto lo\niface lo inet loopback\n"
            "iface eth0 inet static\n  address 192.0.2.7/24\n  gateway 192.0.2.1\niface eth0 inet6 auto\n",
            "/etc/network/interfaces.d/two": "iface eth1 inet dhcp\n",
            "/etc/network/interfaces.d/two.bak~": "iface eth9 inet dhcp\n",
        },
        [("eth0", STATIC, ["192.0.2.7/24"]), ("eth0", DHCP, []), ("eth1", DHCP, [])],
    ),
    "netplan": (
        {"/etc/netplan/50-cloud-init.yaml": NETPLAN},
        [("eth0", DHCP, []), ("ens4", STATIC, ["192.0.2.9/24", "2001:db8::9/64"]), ("en*", DHCP, [])],
    ),
    "NetworkManager": (
        {
            f"{NM}Wired.nmconnection": "[connection]\nid=Wired\ntype=ethernet\ninterface-name=ens3\n\n[ipv4]\n"
            "method=manual\naddress1=192.0.2.7/24,192.0.2.1\n[ipv6]\nmethod=auto\n",
            f"{NM}auto": "[connection]\ntype=ethernet\n[ipv4]\nmethod=auto\naddress1=192.0.2.8/24\n",
            f"{NM}wifi": "[connection]\ntype=wifi\n[ipv4]\nmethod=manual\naddress1=192.0.2.9/24\n",
        },
        [("ens3", STATIC, ["192.0.2.7/24"]), ("", DHCP, [])],
    ),
    "networkd": (
        {"/etc/systemd/network/10.network": "[Match]\nName=eth0\n[Network]\nAddress=192.0.2.7/24\n"
         "[Address]\nAddress=192.0.2.8/24\n",
         "/etc/systemd/network/20.network": "[Match]\nName=en*\n[Network]\nDHCP=ipv4\n"},
        [("eth0", STATIC, ["192.0.2.7/24", "192.0.2.8/24"]), ("en*", DHCP, [])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_way_of_configuring_interfaces(tmp_path: Path, name: str) -> None:
    files, expected = CASES[name]
    found = read_interfaces(_tree(tmp_path, files))
    assert [(one.name, one.is_dhcp, [address for address, _ in one.addresses]) for one in found] == expected


def test_addresses_have_their_lines(tmp_path: Path) -> None:
    found = read_interfaces(_tree(tmp_path, {"/etc/netplan/a.yaml": NETPLAN}))
    assert [str(place) for _, place in found[1].addresses] == ["/etc/netplan/a.yaml:8", "/etc/netplan/a.yaml:9"]


@pytest.mark.parametrize(
    "text",
    ["a: [" * 5000, "network: 5", "network: {ethernets: []}", "network: {ethernets: {eth0: null}}", "\t:",
     "x" * 300_000,
     "a: &a [1,1]\nb: &b [*a,*a]\nnetwork: {ethernets: *b}", "network: {ethernets: {eth0: {addresses: {a: b}}}}"],
)  # fmt: skip
def test_netplan_of_nonsense_is_no_error(tmp_path: Path, text: str) -> None:
    for one in read_interfaces(_tree(tmp_path, {"/etc/netplan/a.yaml": text})):
        assert one.addresses == ()


@pytest.mark.parametrize("name", ["ens3", "enp0s3", "eno1", "enx001122334455", "enp0s31f6", "em1", "p3p1", "ens160"])
def test_predictable_names(name: str) -> None:
    assert _setting(name).is_predictable


@pytest.mark.parametrize("name", ["eth0", "eth10", "en*", "", "lo", "bond0", "net0", "br0"])
def test_other_names(name: str) -> None:
    assert not _setting(name).is_predictable


def _setting(name: str) -> InterfaceSetting:
    from diskfs.preflight.linux.text import Place

    return InterfaceSetting("x", name, Place("/x"), True)


# Services


UNIT = "/usr/lib/systemd/system/ssh.service"
LINK = "/etc/systemd/system/multi-user.target.wants/ssh.service"

SERVICES: dict[str, tuple[dict[str, str], tuple[bool, bool, bool]]] = {
    "enabled": ({UNIT: "", LINK: f"-> {UNIT}"}, (True, True, False)),
    "socket": (
        {"/usr/lib/systemd/system/ssh.socket": "",
         "/etc/systemd/system/sockets.target.wants/ssh.socket": "-> /usr/lib/systemd/system/ssh.socket"},
        (True, True, False),
    ),
    "not enabled": ({UNIT: ""}, (True, False, False)),
    "link that leads nowhere": ({LINK: f"-> {UNIT}"}, (False, False, False)),
    "masked": ({UNIT: "", "/etc/systemd/system/ssh.service": "-> /dev/null"}, (True, False, True)),
    "rc link": ({"/etc/init.d/sshd": "", "/etc/rc.d/rc3.d/S55sshd": "-> ../../init.d/sshd"}, (True, True, False)),
    "stopped in rc": ({"/etc/init.d/sshd": "", "/etc/rc3.d/K55sshd": "-> ../init.d/sshd"}, (True, False, False)),
    "upstart": ({"/etc/init/ssh.conf": "description x\nstart on runlevel [2345]\n"}, (True, True, False)),
    "upstart, manual": (
        {"/etc/init/ssh.conf": "start on runlevel [2345]\n", "/etc/init/ssh.override": "manual\n"}, (True, False, False)
    ),
    "nothing": ({}, (False, False, False)),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVICES)
def test_each_way_of_starting_a_service(tmp_path: Path, name: str) -> None:
    files, expected = SERVICES[name]
    state = Services(_tree(tmp_path, files)).state("ssh", "sshd")
    assert (state.is_installed, state.is_enabled, state.is_masked) == expected


# SSH


def test_the_first_setting_counts_and_included_files_come_where_they_are_named(tmp_path: Path) -> None:
    files = {
        "/etc/ssh/sshd_config": "Include sshd_config.d/*.conf\nPort 22\nPort 2200\nPermitRootLogin no\n"
        "Match User x\nUsePAM no\n",
        "/etc/ssh/sshd_config.d/a.conf": "PermitRootLogin=yes\n",
        "/etc/ssh/sshd_config.d/b.txt": "UsePAM yes\n",
    }
    ssh = Ssh(tree := _tree(tmp_path, files), Services(tree))
    assert ssh.settings["permitrootlogin"][0] == "yes"
    assert str(ssh.settings["permitrootlogin"][1]) == "/etc/ssh/sshd_config.d/a.conf:1"
    assert "usepam" not in ssh.settings
    assert ssh.ports == (22, 2200)


def test_configurations_of_sshd_that_include_themselves_end(tmp_path: Path) -> None:
    tree = _tree(tmp_path, {"/etc/ssh/sshd_config": "Include /etc/ssh/sshd_config\n" * 3})
    assert Ssh(tree, Services(tree)).ports == (22,)


def test_keys_are_looked_for_where_sshd_looks(tmp_path: Path) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx0bYlYdCTYqD2yjy6sVJtpOJIzjfsmcoUnl3DVuPrP x\n"
    files = {
        "/etc/passwd": "root:x:0:0::/root:/bin/sh\na:x:1000:1::/home/a:/bin/sh\nb:x:1001:1::/home/b:/bin/sh\n"
        "c:x:1002:1::/home/c:/usr/sbin/nologin\nd:x:200:1::/home/d:/bin/sh\nbroken\ne:x:99999999999:1::/:\n",
        "/etc/ssh/sshd_config": "AuthorizedKeysFile /etc/keys/%u .ssh/authorized_keys\n",
        "/etc/keys/a": "# none\n" + key,
        "/home/b/.ssh/authorized_keys": 'from="192.0.2.0/24" ' + key,
        "/home/c/.ssh/authorized_keys": key,
        "/home/d/.ssh/authorized_keys": key,
        "/root/.ssh/authorized_keys": key,
    }
    ssh = Ssh(tree := _tree(tmp_path, files), Services(tree))
    assert [(user.name, path) for user, path in ssh.people_with_keys()] == [
        ("a", "/etc/keys/a"), ("b", "/home/b/.ssh/authorized_keys"),
    ]  # fmt: skip
    assert [user.name for user in parse_passwd(files["/etc/passwd"])] == ["root", "a", "b", "c", "d"]


# Firewalls

RULES: dict[str, tuple[str, bool]] = {
    "accepted by port": (":INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n", True),
    "accepted by name and list": (":INPUT DROP [0:0]\n-A INPUT -p tcp -m multiport --dports 80,ssh -j ACCEPT\n", True),
    "accepted by range": (":INPUT DROP [0:0]\n-A INPUT -p tcp --dport 20:25 -j ACCEPT\n", True),
    "accepted by policy": (":INPUT ACCEPT [0:0]\n-A INPUT -p udp -j DROP\n", True),
    "dropped by policy": (":INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n", False),
    "rejected at the end": (":INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 80 -j ACCEPT\n-A INPUT -j REJECT\n", False),
    "from one network alone": (":INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/8 -p tcp --dport 22 -j ACCEPT\n", False),
    "established alone": (":INPUT DROP [0:0]\n-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT\n", False),
    "new": (":INPUT DROP [0:0]\n-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT\n", True),
    "in a chain": (
        ":INPUT ACCEPT [0:0]\n:RH - [0:0]\n-A INPUT -j RH\n-A RH -p tcp --dport 22 -j ACCEPT\n-A RH -j REJECT\n", True
    ),
    "chains in a circle": (":INPUT DROP [0:0]\n-A INPUT -j A\n-A A -j B\n-A B -j A\n", False),
    "in another table": ("COMMIT\n*nat\n-A INPUT -p tcp --dport 22 -j DROP\n", True),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_saved_rules_of_iptables(name: str) -> None:
    text, allows = RULES[name]
    assert judge_iptables(f"*filter\n{text}COMMIT\n", "/rules", (22,)).allows is allows


def test_nftables() -> None:
    head = "table inet filter {\n chain input {\n  type filter hook input priority 0; policy drop;\n"
    assert judge_nftables(head + "  tcp dport { 80, 22 } accept\n}}", "/n", (22,)).allows
    assert judge_nftables(head + "  tcp dport ssh accept\n}}", "/n", (22,)).allows
    verdict = judge_nftables(head + "  tcp dport 443 accept\n}}", "/n", (22,))
    assert verdict.allows is False
    assert verdict.place.line == 3
    assert judge_nftables(head.replace("drop", "accept"), "/n", (22,)).allows


ZONE = '<?xml version="1.0"?><zone><service name="dhcpv6-client"/>{}</zone>'
ENABLED = {
    "/usr/lib/systemd/system/firewalld.service": "",
    "/etc/systemd/system/multi-user.target.wants/firewalld.service": "-> /usr/lib/systemd/system/firewalld.service",
}


@pytest.mark.parametrize(
    ("zone", "allows"),
    [
        ('<service name="ssh"/>', True), ('<port protocol="tcp" port="22"/>', True),
        ('<port protocol="udp" port="22"/>', False),
        ("", False), ("<!-- -->", False), ("<unclosed>", None),
        ('<!DOCTYPE x [<!ENTITY a "b">]>', None),
    ],
)  # fmt: skip
def test_zones_of_firewalld(tmp_path: Path, zone: str, allows: bool | None) -> None:
    files = {**ENABLED, "/etc/firewalld/zones/public.xml": ZONE.format(zone)}
    tree = _tree(tmp_path, files)
    (verdict,) = read_firewalls(tree, Services(tree), (22,))
    assert verdict.allows is allows


def test_a_firewall_that_is_not_started_is_none(tmp_path: Path) -> None:
    files = {
        "/etc/firewalld/zones/public.xml": ZONE.format(""),
        "/etc/sysconfig/iptables": "*filter\n:INPUT DROP [0:0]\n",
    }
    tree = _tree(tmp_path, files)
    assert list(read_firewalls(tree, Services(tree), (22,))) == []
