"""/etc/fstab, parsed as libmount does.

Specification: fstab(5) and util-linux's libmount: fields are separated by blanks and tabs, `\\ooo` is an octal escape,
options, frequency and pass may be absent, and a line that cannot be parsed is skipped by mount(8).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from diskfs.preflight.linux.text import numbered_lines

_ESCAPE = re.compile(r"\\([0-7]{3})")
_NUMBER = re.compile(r"[-+]?[0-9]+$")

PSEUDO_TYPES = frozenset(
    {
        "autofs", "bpf", "binder", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
        "fusectl", "hugetlbfs", "mqueue", "none", "overlay", "proc", "pstore", "ramfs", "rpc_pipefs", "securityfs",
        "selinuxfs", "sysfs", "tmpfs", "tracefs", "usbfs", "usbdevfs", "nfsd", "binfmt_misc", "aufs", "unionfs",
    }
)  # fmt: skip
"""Types without a device: what stands in the first field means nothing."""

NON_STANDARD_TYPES = frozenset(
    {
        "cifs", "smbfs", "smb3", "vboxsf", "prl_fs", "vmhgfs", "fuse.vmhgfs-fuse", "sshfs", "fuse.sshfs",
    }
)  # fmt: skip
"""What the import disables. The guide names cifs, smbfs, vboxsf and sshfs and ends with "etc."; the rest is chosen."""

NETWORK_TYPES = frozenset(
    {
        "nfs", "nfs4", "ceph", "glusterfs", "fuse.glusterfs", "lustre", "ocfs2", "gfs2", "9p", "virtiofs",
    }
)  # fmt: skip
"""Types on other machines: no disk of this one holds them. They are kept and reported."""

OPTICAL_DEVICE = re.compile(r"/dev/(cdrom\d*|dvd\d*|sr\d+|scd\d+|fd\d+|floppy)$")


@dataclass(frozen=True, slots=True)
class FstabEntry:
    """One line that libmount takes: `spec` may be a path, `UUID=...` or anything a pseudo file system is called."""

    line: int
    spec: str
    file: str
    vfstype: str
    options: str
    freq: int
    passno: int

    @property
    def option_list(self) -> list[str]:
        return [option.strip() for option in self.options.split(",") if option.strip()]

    @property
    def is_swap(self) -> bool:
        return self.vfstype == "swap"

    @property
    def is_bind(self) -> bool:
        return any(option in {"bind", "rbind"} for option in self.option_list)

    @property
    def is_pseudo(self) -> bool:
        """Tell whether no device is meant: a pseudo type, a bind mount, `none`, or a file under /."""
        return (
            self.vfstype in PSEUDO_TYPES
            or self.is_bind
            or self.spec == "none"
            or (self.spec.startswith("/") and not self.spec.startswith("/dev/"))
        )

    @property
    def is_non_standard(self) -> bool:
        """Tell whether the import disables the entry for its type."""
        return self.vfstype.lower() in NON_STANDARD_TYPES or self.spec.startswith("sshfs#")

    @property
    def is_network(self) -> bool:
        return self.vfstype in NETWORK_TYPES

    @property
    def is_optical(self) -> bool:
        return bool(OPTICAL_DEVICE.match(self.spec))

    @property
    def tag(self) -> tuple[str, str] | None:
        """(`UUID`, value) of a spec of that form, else None."""
        name, separator, value = self.spec.partition("=")
        if separator and name in {"UUID", "LABEL", "PARTUUID", "PARTLABEL", "ID"}:
            return name, value.strip("\"'")
        for name, prefix in _TAG_FOLDERS:
            if self.spec.startswith(prefix):
                return name, self.spec.removeprefix(prefix)
        return None


_TAG_FOLDERS = (
    ("UUID", "/dev/disk/by-uuid/"),
    ("LABEL", "/dev/disk/by-label/"),
    ("PARTUUID", "/dev/disk/by-partuuid/"),
    ("PARTLABEL", "/dev/disk/by-partlabel/"),
)


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line that mount(8) skips, and why."""

    line: int
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fstab:
    entries: tuple[FstabEntry, ...]
    invalid: tuple[InvalidLine, ...]
    has_nul: bool

    def at(self, mount_point: str) -> FstabEntry | None:
        """Return the first entry for a mount point; trailing slashes do not matter."""
        wanted = mount_point.rstrip("/")
        return next((one for one in self.entries if one.file.startswith("/") and one.file.rstrip("/") == wanted), None)


def parse_fstab(text: str) -> Fstab:
    """Parse the file; never raises. Lines past the limits of `text` are not looked at."""
    entries: list[FstabEntry] = []
    invalid: list[InvalidLine] = []
    for item in _parsed_lines(text):
        if isinstance(item, FstabEntry):
            entries.append(item)
        else:
            invalid.append(item)
    return Fstab(tuple(entries), tuple(invalid), "\0" in text)


def _parsed_lines(text: str) -> Iterator[FstabEntry | InvalidLine]:
    for number, line in numbered_lines(text):
        content = line.lstrip(" \t")
        if not content.strip() or content.startswith("#"):
            continue
        if "\0" in content:
            yield InvalidLine(number, line, "it has a NUL byte")
            continue
        # What libmount reads after the first three fields may be absent, and what follows the sixth is a comment.
        fields = content.replace("\t", " ").split()
        if len(fields) < 3:
            yield InvalidLine(
                number, line, f"it has {len(fields)} of the 6 fields; at least device, folder and type are needed"
            )
            continue
        spec, file, vfstype = (_unescaped(field) for field in fields[:3])
        numbers = fields[4:6]
        if any(not _NUMBER.match(field) for field in numbers):
            yield InvalidLine(number, line, f"field 5 or 6 is not a number: {' '.join(numbers)[:60]}")
            continue
        if not file.startswith("/") and file not in {"none", "swap"} and vfstype != "swap":
            yield InvalidLine(
                number, line, f"the mount point {file[:60]!r} is neither an absolute path nor none or swap"
            )
            continue
        options = _unescaped(fields[3]) if len(fields) > 3 else "defaults"
        freq, passno = (int(numbers[at][:9]) if len(numbers) > at else 0 for at in (0, 1))
        yield FstabEntry(number, spec, file, vfstype, options, freq, passno)


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8) & 0xFF), field)
