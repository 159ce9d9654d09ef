"""VMIE-OS: versions of Windows that are not taken in some Regions, or in one boot mode."""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, not_checked, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs.preflight.rules.request import regions
from diskfs.preflight.supported_os import regions_without
from diskfs.preflight.windows.version import WindowsVersion

NEEDS_REGION = "it depends on the Region: give --region"
ONLY_64_BIT = frozenset({"win7", "win8"})
"""Rows of the table of Windows versions whose 32-bit form is not taken in Regions that must be enabled."""


def version_of(facts: Facts) -> WindowsVersion:
    """Return the version of the Windows that was found."""
    windows = facts.windows
    assert windows is not None
    return windows.version


def _listed_id(facts: Facts) -> str:
    listed = version_of(facts).listed
    return listed.id if listed is not None else ""


@check("VMIE-OS-09")
def windows_11_boots_with_uefi(facts: Facts) -> Iterator[Outcome]:
    """For Windows 11, --boot-mode is uefi, and an EFI system partition has a loader."""
    version = version_of(facts)
    if not version.is_windows_11:
        yield not_applicable("the system is not Windows 11")
        return
    mode = facts.request.boot_mode
    if mode != "uefi":
        yield failed(f"{version}, and --boot-mode is {mode or 'not given'}", "give --boot-mode uefi")
    if not facts.boot.uefi_reason:
        yield failed(f"{version}, and no EFI system partition has a loader")


@check("VMIE-OS-10")
def thirty_two_bits_in_region(facts: Facts) -> Iterator[Outcome]:
    """Windows 7 or 8 is 64-bit, or --region needs not be enabled."""
    version = version_of(facts)
    if _listed_id(facts) not in ONLY_64_BIT:
        yield not_applicable("the system is neither Windows 7 nor 8")
    elif version.bits is None:
        yield unknown(f"whether {version} is 32-bit or 64-bit is not known")
    elif version.bits == 64:
        yield passed(str(version))
    else:
        yield from _opt_in(facts, f"{version}")


@check("VMIE-OS-12")
def old_servers_in_region(facts: Facts) -> Iterator[Outcome]:
    """The system's line of the table takes Regions that must be enabled, or --region is none of them."""
    listed = version_of(facts).listed
    if listed is None or listed.non_default_regions:
        yield not_applicable("the system is none of Windows Server 2003, 2003 R2 and 2008")
    else:
        yield from _opt_in(facts, listed.name)


def _opt_in(facts: Facts, what: str) -> Iterator[Outcome]:
    region = facts.request.region
    if region is None:
        yield not_checked(NEEDS_REGION)
    elif region in regions()["opt_in"]:
        yield failed(f"{what} in {region}, a Region that must be enabled")
    else:
        yield passed(f"{what} in {region}")


@check("VMIE-OS-13")
def new_servers_in_china(facts: Facts) -> Iterator[Outcome]:
    """Windows Server 2022 or 2025 does not go to a Region in China."""
    yield from _without(facts, "VMIE-OS-13", {"ws2022", "ws2025"})


@check("VMIE-OS-14")
def windows_11_in_region(facts: Facts) -> Iterator[Outcome]:
    """Windows 11 does not go to one of the eight Regions that the guide excludes."""
    yield from _without(facts, "VMIE-OS-14", {"win11"})


def _without(facts: Facts, rule_id: str, ids: set[str]) -> Iterator[Outcome]:
    version, region = version_of(facts), facts.request.region
    if _listed_id(facts) not in ids:
        yield not_applicable(f"the rule is not about {version}")
    elif region is None:
        yield not_checked(NEEDS_REGION)
    elif region in regions_without(rule_id):
        yield failed(f"{version} in {region}")
    else:
        yield passed(f"{version} in {region}")
