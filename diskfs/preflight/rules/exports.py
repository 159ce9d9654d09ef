"""VMIE-EXP: what an export asks of the guest."""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, passed
from diskfs.preflight.rules.registry import check


@check("VMIE-EXP-14")
def no_hybrid_grub(facts: Facts) -> Iterator[Outcome]:
    """GRUB is not in the MBR of a disk and, with a loader of its own, on an EFI system partition as well."""
    bios = [disk.bios_reason for disk in facts.boot.disks if disk.boot_code.is_grub and disk.bios_reason]
    efi = facts.boot.uefi_reason
    if bios and efi:
        yield failed(f"{bios[0]}; UEFI can start {efi}")
    else:
        yield passed(bios[0] if bios else efi)
