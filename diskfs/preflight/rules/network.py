"""The rules about the network of a Linux guest: interface names, SSH, the firewall, users."""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.linux import LinuxFacts
from diskfs.preflight.rules.linux_systems import linux_of
from diskfs.preflight.rules.outcome import Outcome, failed, passed, unknown
from diskfs.preflight.rules.registry import check

UDEV_RULES = (
    "/usr/lib/udev/rules.d/80-net-setup-link.rules", "/lib/udev/rules.d/80-net-setup-link.rules",
    "/lib/udev/rules.d/80-net-name-slot.rules",
)  # fmt: skip
"""What gives interfaces predictable names, if nothing switches it off."""
SWITCHES = (
    "/etc/udev/rules.d/80-net-setup-link.rules", "/etc/udev/rules.d/80-net-name-slot.rules",
    "/etc/systemd/network/99-default.link",
)  # fmt: skip
"""Masking one of these switches it off."""
TURN_OFF = (
    "add 'net.ifnames=0 biosdevname=0' to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub (or "
    "grub2-mkconfig), and call the interface eth0 in the network configuration"
)


@check("VMIE-LIN-06")
def interface_names(facts: Facts) -> Iterator[Outcome]:
    """No network configuration is for a name such as ens3 or enp0s3, and where udev would give such names, the default
    kernel's options have net.ifnames=0 or the rule or link file of udev is masked.
    """
    linux = linux_of(facts)
    for setting in linux.interfaces:
        if setting.is_predictable and not setting.is_disabled:
            yield failed(f"{setting.place}: the interface {setting.name} has a predictable name", TURN_OFF)
    yield from _naming(linux)


def _naming(linux: LinuxFacts) -> Iterator[Outcome]:
    tree = linux.tree
    masked = next((path for path in SWITCHES if tree.is_masked(path)), None)
    rules = next((path for path in UDEV_RULES if tree.is_file(path)), None)
    biosdevname = tree.exists("/sbin/biosdevname")
    if masked is not None:
        yield passed(f"{masked} is masked")
        return
    if rules is None and not biosdevname:
        yield passed("udev has no rule that gives predictable names")
        return
    if linux.command_line is None:
        yield unknown("the options of the default kernel could not be found")
        return
    options, place = linux.command_line
    words = options.split()
    if rules is not None and "net.ifnames=0" not in words:
        yield failed(f"{place}: the kernel's options lack net.ifnames=0, so {rules} gives predictable names", TURN_OFF)
    elif biosdevname and "biosdevname=0" not in words:
        yield failed(f"{place}: the kernel's options lack biosdevname=0 and /sbin/biosdevname is installed", TURN_OFF)
    else:
        yield passed(f"{place}: net.ifnames=0")


@check("VMIE-LIN-07")
def ssh_enabled(facts: Facts) -> Iterator[Outcome]:
    """sshd is installed, and a link of systemd, System V's rc folders or an upstart job starts it."""
    ssh = linux_of(facts).ssh
    if ssh.server is None:
        yield failed("/usr/sbin/sshd is not there", "install openssh-server")
    elif ssh.service.is_masked:
        yield failed(f"{ssh.service.evidence}: the service is masked", "systemctl unmask ssh && systemctl enable ssh")
    elif not ssh.service.is_enabled:
        yield failed(f"{ssh.server} is there, and nothing starts it at boot", "systemctl enable ssh (or sshd)")
    else:
        yield passed(f"{ssh.service.evidence}")


@check("VMIE-LIN-08")
def firewall_allows_ssh(facts: Facts) -> Iterator[Outcome]:
    """Each firewall that is started at boot (saved iptables rules, nftables, ufw, firewalld, SuSEfirewall2) accepts new
    connections to sshd's port from anywhere.
    """
    linux = linux_of(facts)
    for verdict in linux.firewalls:
        said = f"{verdict.place}: {verdict.kind}: {verdict.reason}"
        if verdict.allows is None:
            yield unknown(said)
        elif verdict.allows:
            yield passed(said)
        else:
            ports = ", ".join(map(str, linux.ssh.ports))
            yield failed(f"{said}; connections to port {ports} are dropped", f"open port {ports} in {verdict.kind}")
    if not linux.firewalls:
        yield passed("no firewall is started at boot")


@check("VMIE-LIN-09")
def user_with_key(facts: Facts) -> Iterator[Outcome]:
    """A user that is not root, with a uid of people and a login shell, has a public key in authorized_keys, and
    sshd_config does not refuse keys or the user.
    """
    ssh = linux_of(facts).ssh
    pubkey = ssh.settings.get("pubkeyauthentication")
    if pubkey is not None and pubkey[0].lower() == "no":
        yield failed(f"{pubkey[1]}: PubkeyAuthentication no", "set PubkeyAuthentication yes")
        return
    people = ssh.people_with_keys()
    if not people:
        yield failed(
            "no user but root has a key in .ssh/authorized_keys",
            "adduser USER, and put a key in ~USER/.ssh/authorized_keys",
        )
        return
    allowed, denied = ssh.settings.get("allowusers"), ssh.settings.get("denyusers")
    for user, path in people:
        if denied is not None and user.name in denied[0].split():
            yield failed(f"{denied[1]}: DenyUsers has {user.name}")
        elif (
            allowed is not None
            and user.name not in {word.partition("@")[0] for word in allowed[0].split()}
            and "*" not in allowed[0]
        ):
            yield failed(f"{allowed[1]}: AllowUsers lacks {user.name}")
        else:
            yield passed(f"{path}: {user.name}")
