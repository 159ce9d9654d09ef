"""The rules about /etc/fstab and about several systems on the disks."""

from collections.abc import Iterator

from diskfs.guest.errors import LinkError
from diskfs.preflight.facts import Facts
from diskfs.preflight.linux.devices import UNSTABLE_DEVICE
from diskfs.preflight.linux.fstab import FstabEntry
from diskfs.preflight.rules.linux_systems import linux_of
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs_formats.findings import Severity

FSTAB = "/etc/fstab"


@check("VMIE-LIN-12")
def readable_fstab(facts: Facts) -> Iterator[Outcome]:
    """/etc/fstab of the root file system is a file, has an entry for / and no NUL byte, and each line has the four
    fields that it needs.

    A line that is invalid is a warning: the import comments it out.
    """
    linux = linux_of(facts)
    try:
        fstab = linux.fstab
    except LinkError as error:
        yield failed(str(error), f"make {FSTAB} a file")
        return
    if fstab is None:
        yield failed(f"{linux.root.place}/fstab: there is no such file")
        return
    if fstab.has_nul:
        yield failed(f"{FSTAB}: it has NUL bytes", "write it anew; a crash may have left the file without its content")
        return
    for invalid in fstab.invalid:
        yield failed(
            f"{FSTAB}:{invalid.line}: {invalid.reason}: {invalid.text.strip()[:120]!r}; the import comments it out",
            f"mend or remove line {invalid.line} of {FSTAB}",
            severity=Severity.WARNING,
        )
    if fstab.at("/") is None and not fstab.invalid:
        yield failed(f"{FSTAB}: no entry is for /", f"add the root file system to {FSTAB}", severity=Severity.WARNING)
    yield passed(f"{FSTAB}: {len(fstab.entries)} entries")


@check("VMIE-LIN-13", "VMIE-LIN-14")
def one_system(facts: Facts) -> Iterator[Outcome]:
    """One file system alone has an /etc with fstab, passwd, os-release or a file like it."""
    roots = linux_of(facts).roots
    if len(roots) == 1:
        yield passed(f"{roots[0].place} alone")
        return
    places = [f"{root.place} ({', '.join(root.marks[:4])})" for root in roots]
    yield failed(f"{len(roots)} file systems have an /etc: {'; '.join(places)}")


@check("VMIE-LIN-15")
def devices_by_uuid(facts: Facts) -> Iterator[Outcome]:
    """No first field of fstab, and no root= of the default kernel's options, is a name like /dev/sda1 or one of
    /dev/disk/by-path or by-id.
    """
    linux = linux_of(facts)
    for entry in linux.fstab.entries if linux.fstab else ():
        if UNSTABLE_DEVICE.match(entry.spec) and not entry.is_optical:
            match = linux.devices.resolve(entry.spec)
            uuid = linux.devices.uuid(match.volume) if match else ""
            remedy = f"write UUID={uuid} for {entry.spec} in line {entry.line} of {FSTAB}" if uuid else None
            yield failed(f"{FSTAB}:{entry.line}: {entry.spec} on {entry.file}", remedy)
    if linux.command_line is not None:
        options, place = linux.command_line
        for word in options.split():
            if word.startswith("root=") and UNSTABLE_DEVICE.match(word.removeprefix("root=")):
                yield failed(f"{place}: {word}", "give the root file system as root=UUID=... and run update-grub")


@check("VMIE-LIN-16")
def devices_present(facts: Facts) -> Iterator[Outcome]:
    """Every device that fstab names, by whatever name, is on one of the given disks."""
    linux = linux_of(facts)
    if linux.fstab is None:
        yield not_applicable("there is no /etc/fstab")
        return
    for entry in linux.fstab.entries:
        if not is_device(entry):
            continue
        match = linux.devices.resolve(entry.spec)
        if match is None:
            yield failed(f"{FSTAB}:{entry.line}: {entry.spec} on {entry.file} is on none of the given disks")
        else:
            order = ", by the disks' order" if match.by_order else ""
            yield passed(f"{FSTAB}:{entry.line}: {entry.spec} is {match.volume.name}{order}")


def is_device(entry: FstabEntry) -> bool:
    """Tell whether an entry is for a disk's file system or swap partition."""
    return not (entry.is_pseudo or entry.is_network or entry.is_non_standard or entry.is_optical)


@check("VMIE-LIN-17")
def standard_types(facts: Facts) -> Iterator[Outcome]:
    """No third field of fstab is cifs, smbfs, smb3, vboxsf, prl_fs, vmhgfs, sshfs or their FUSE form; nfs is noted."""
    linux = linux_of(facts)
    for entry in linux.fstab.entries if linux.fstab else ():
        if entry.is_non_standard:
            yield failed(f"{FSTAB}:{entry.line}: {entry.vfstype} on {entry.file}; the import disables the entry")
        elif entry.vfstype in {"nfs", "nfs4"}:
            yield passed(
                f"{FSTAB}:{entry.line}: {entry.spec[:80]} on {entry.file} ({entry.vfstype}) must be reachable from AWS"
            )


@check("VMIE-FS-02")
def root_filesystem(facts: Facts) -> Iterator[Outcome]:
    """The file system that holds /etc is ext2, ext3, ext4, Btrfs, JFS or XFS."""
    volume = linux_of(facts).root_volume
    if volume.filesystem in {"ext2", "ext3", "ext4", "btrfs", "jfs", "xfs"}:
        yield passed(f"{volume.name}: {volume.filesystem}")
    else:
        yield failed(f"{volume.name}: the root file system is {volume.filesystem}")


@check("VMIE-FS-05", any_guest=True)
def volume_groups(facts: Facts) -> Iterator[Outcome]:
    """The metadata of every LVM physical volume can be read, and all physical volumes of its group are on the disks."""
    members = [volume for volume in facts.volumes if volume.filesystem == "LVM2_member"]
    logical = [volume for volume in facts.volumes if ":" in volume.name] if members else []
    if not members and not logical:
        yield not_applicable("there is no LVM")
        return
    for volume in members:
        if volume.problem:
            yield failed(f"{volume.name}: {volume.problem}")
    for volume in logical:
        if volume.problem and volume.filesystem is None:
            # A volume that is only of a kind that is not read (thin, cached) may activate all the same.
            is_broken = "physical volume" in volume.problem or volume.name.endswith(":lvm")
            yield (failed if is_broken else unknown)(f"{volume.name}: {volume.problem}")
        else:
            yield passed(f"{volume.name}: {volume.size >> 20} MiB")
