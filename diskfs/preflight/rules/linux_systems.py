"""VMIE-OS and the rules beside it: is the Linux system, its kernel and its processor one that the service takes?"""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.linux import LinuxFacts
from diskfs.preflight.linux.kernels import Kernel, module_folder
from diskfs.preflight.linux.release import Release
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs.preflight.supported_os import LinuxRow, LinuxSystem, linux_systems
from diskfs_formats.findings import Severity

NO_DEFAULT_KERNEL = "the kernel that is booted by default could not be found"


def linux_of(facts: Facts) -> LinuxFacts:
    """Return the facts about Linux; the engine runs these checks only where there are any."""
    linux = facts.linux
    assert linux is not None
    return linux


def system_of(release: Release) -> LinuxSystem | None:
    """Return the distribution of the table that a guest says it is."""
    for system in linux_systems():
        if system.os_release_id == release.id and (
            not system.version_ids or release.version.split(".")[0] in system.version_ids
        ):
            return system
    return None


def rows_of(release: Release) -> tuple[LinuxRow, ...]:
    """Return the rows of the table for a guest's version, those of a later edition of the guide included."""
    system = system_of(release)
    return system.rows_for(release.version, release.service_pack) if system and release.version else ()


@check("VMIE-OS-02", any_guest=True)
def listed_distribution(facts: Facts) -> Iterator[Outcome]:
    """The distribution and version that /etc/os-release or its predecessors give are in the table of supported systems.

    Debian's and CentOS's point releases are taken from debian_version and centos-release, SUSE's service pack from the
    minor version or PATCHLEVEL. A source on whose disks no system is found fails too.
    """
    if facts.linux is None:
        yield _no_linux(facts)
        return
    release = linux_of(facts).release
    if release is None:
        yield failed("none of os-release, redhat-release, SuSE-release, lsb-release and debian_version is in /etc")
        return
    said = f"{release.place}: {_told(release)}"
    system = system_of(release)
    if system is None:
        yield failed(f"{said}; no version of it is listed")
        return
    rows = rows_of(release)
    if not rows:
        listed = ", ".join(dict.fromkeys(row.printed for row in system.rows if not row.later))
        yield failed(f"{said}; the listed versions of {system.name} are {listed}")
    elif all(row.later for row in rows):
        yield failed(f"{said}; only later editions of the guide list it", severity=Severity.WARNING)
    else:
        yield passed(said)


def _no_linux(facts: Facts) -> Outcome:
    if facts.windows is not None:
        return not_applicable("the system is Windows")
    problem = next((f"{volume.name}: {volume.problem}" for volume in facts.volumes if volume.problem), "")
    if problem:
        return unknown(f"no system was found, and not all volumes could be looked into: {problem}")
    return failed("no file system of the disks holds a Linux or Windows system")


@check("VMIE-OS-03")
def listed_kernel(facts: Facts) -> Iterator[Outcome]:
    """The release of the kernel that GRUB boots by default begins with one of the numbers that the table has for the
    distribution and version.
    """
    linux = linux_of(facts)
    rows = rows_of(linux.release) if linux.release else ()
    if not rows:
        yield not_applicable("the table has no kernels for this system, which is not listed (VMIE-OS-02)")
        return
    kernel = linux.default_kernel
    if kernel is None:
        yield unknown(NO_DEFAULT_KERNEL)
    elif any(row.takes_kernel(kernel.release) or _is_excluded(row, kernel) for row in rows):
        # What RHEL 6 excludes is VMIE-OS-04's.
        yield passed(f"{kernel.path}: {kernel.release}")
    else:
        listed = " or ".join(dict.fromkeys(row.kernels for row in rows))
        yield failed(f"{kernel.path}: the default kernel is {kernel.release}; listed is {listed}")


@check("VMIE-OS-04")
def excluded_kernel(facts: Facts) -> Iterator[Outcome]:
    """On RHEL 6, the default kernel is not of the release 2.6.32-71."""
    linux = linux_of(facts)
    rows = [row for row in (rows_of(linux.release) if linux.release else ()) if row.kernels_excluded]
    if not rows:
        yield not_applicable("this is not RHEL 6")
        return
    kernel = linux.default_kernel
    if kernel is None:
        yield unknown(NO_DEFAULT_KERNEL)
    elif any(_is_excluded(row, kernel) for row in rows):
        yield failed(f"{kernel.path}: the default kernel is {kernel.release}")
    else:
        yield passed(f"{kernel.path}: {kernel.release}")


@check("VMIE-LIN-01")
def is_64_bit(facts: Facts) -> Iterator[Outcome]:
    """/sbin/init or /bin/sh is a 64-bit ELF program, and the header of the default kernel does not say i386."""
    linux = linux_of(facts)
    program, kernel = linux.program, linux.default_kernel
    if program is None:
        yield unknown("neither /sbin/init nor /bin/sh is an ELF program")
    elif program.header.bits == 32:
        yield failed(f"{program.path}: its ELF header is of 32 bits ({program.header.machine})")
    else:
        yield passed(f"{program.path}: 64 bits, {program.header.machine}")
    if kernel is not None and kernel.machine == "i386":
        yield failed(f"{kernel.path}: the default kernel {kernel.release} is for i386")


@check("VMIE-LIN-02")
def default_kernel(facts: Facts) -> Iterator[Outcome]:
    """The default kernel has its modules under /lib/modules, and where dpkg keeps lists of files, is in one of them.

    RPM's database is not read.
    """
    linux = linux_of(facts)
    kernel = linux.default_kernel
    if kernel is None:
        yield unknown(NO_DEFAULT_KERNEL)
        return
    if module_folder(linux.tree, kernel.release) is None:
        yield failed(f"{kernel.path}: /lib/modules has no folder {kernel.release}")
    elif linux.kernel_package is not None:
        yield passed(f"{linux.kernel_package}: {kernel.path}")
    elif linux.tree.is_folder("/var/lib/dpkg/info"):
        yield failed(
            f"{kernel.path}: no package in /var/lib/dpkg/info has this file: the kernel is not the distribution's"
        )
    else:
        yield passed(f"{kernel.path}: its modules are there; which package it is of was not looked up")


def _is_excluded(row: LinuxRow, kernel: Kernel) -> bool:
    return any(
        kernel.release == excluded or kernel.release.startswith((f"{excluded}.", f"{excluded}-"))
        for excluded in row.kernels_excluded
    )


def _told(release: Release) -> str:
    pack = f" SP{release.service_pack}" if release.service_pack else ""
    version = f"{release.version}{pack}".strip()
    return (
        f"{release.name or release.id}, version {version}" if version else f"{release.name or release.id}, no version"
    )
