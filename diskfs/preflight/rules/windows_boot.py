"""VMIE-BOOT-02 to -05 and VMIE-WIN-05, -28, -30: how Windows starts, and what the service makes of it."""

from collections.abc import Iterator

from diskfs.preflight.boot_mode import boot_table, predict, unmet_criteria
from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs.preflight.rules.windows_systems import windows_of
from diskfs.preflight.windows.bcd import (
    BOOT_STATUS_POLICY,
    LIBRARY_DESCRIPTION,
    LIBRARY_EMS,
    LIBRARY_PATH,
    OS_EMS,
    RECOVERY_ENABLED,
    RECOVERY_SEQUENCE,
    BcdObject,
)
from diskfs_formats.findings import Severity

BIOS, UEFI = "legacy-bios", "uefi"
MAX_SHOWN = 8
MAX_TEXT = 200


def _reasons(facts: Facts) -> str:
    """Say what firmware would start, and which of Windows' own loaders are there."""
    boot, windows = facts.boot, windows_of(facts).boot
    return "; ".join(filter(None, [boot.bios_reason, windows.bios_reason, boot.uefi_reason, windows.uefi_reason]))


@check("VMIE-BOOT-02")
def boot_modes_that_fit(facts: Facts) -> Iterator[Outcome]:
    """States which modes fit: legacy BIOS with boot code and an active partition, which for Windows has bootmgr and
    Boot\\BCD (or ntldr and boot.ini); UEFI with a loader on an EFI system partition, for Windows bootmgfw.efi. It fails
    if --boot-mode does not fit, or a store is missing.
    """
    fits, given = facts.boot.fits, facts.request.boot_mode
    if not fits:
        yield failed("nothing on the disks starts Windows: see VMIE-BOOT-11", severity=Severity.WARNING)
    elif given in {BIOS, UEFI} and given not in fits:
        yield failed(
            f"--boot-mode {given}, and only {next(iter(fits))} fits: {_reasons(facts)}",
            "leave --boot-mode out, or convert the disk (mbr2gpt /convert)",
            severity=Severity.WARNING,
        )
    windows = windows_of(facts).boot
    for mode, reason in ((BIOS, windows.bios_reason), (UEFI, windows.uefi_reason)):
        if mode in fits and not reason:
            yield failed(
                f"{mode} fits ({_reasons(facts)}), and no boot manager of Windows with its boot store is there",
                "rebuild it: bcdboot C:\\Windows",
                severity=Severity.WARNING,
            )
    if fits:
        yield passed(f"{' and '.join(sorted(fits))}: {_reasons(facts)}")


@check("VMIE-BOOT-03")
def default_boot_mode(facts: Facts) -> Iterator[Outcome]:
    """States the mode of a system that fits both: legacy BIOS if its disk is below 2 TiB, has three primary partitions
    or fewer, is no dynamic disk, and is VHDX. Where one of these is not so and no --boot-mode is given, it fails.
    """
    if facts.boot.fits != {BIOS, UEFI}:
        yield not_applicable("it does not fit both modes")
        return
    prediction = predict(facts)
    if prediction.mode is None:
        yield failed(
            "; ".join(unmet_criteria(facts)),
            "give --boot-mode uefi or --boot-mode legacy-bios",
            severity=Severity.WARNING,
        )
    else:
        yield passed(f"{prediction.mode}: {prediction.reason}")


@check("VMIE-BOOT-04")
def gpt_stays(facts: Facts) -> Iterator[Outcome]:
    """The GPT of a Windows system that fits both modes is not converted to MBR: --boot-mode is given, or a criterion of
    VMIE-BOOT-03 is not met.
    """
    if not _has_gpt(facts):
        yield not_applicable("the disk that is started has no GPT")
        return
    prediction = predict(facts)
    if prediction.converts_gpt:
        yield failed(f"a GPT, and {prediction.reason}", "give --boot-mode uefi to keep it")
    else:
        yield passed(f"the GPT stays: {prediction.reason}")


@check("VMIE-BOOT-05")
def uefi_disk_stays(facts: Facts) -> Iterator[Outcome]:
    """The GPT of a Windows system that fits UEFI, perhaps UEFI alone, is not converted to MBR: --boot-mode is given, or
    a criterion of VMIE-BOOT-03 is not met.
    """
    given = facts.request.boot_mode
    if not _has_gpt(facts) or UEFI not in facts.boot.fits:
        yield not_applicable("the disk that is started has no GPT, or no loader for UEFI")
        return
    against = [f"--boot-mode {given}"] if given is not None else unmet_criteria(facts)
    if against:
        yield passed(f"the GPT stays: {'; '.join(against)}")
    else:
        yield failed(
            "a GPT on a disk that meets all criteria: it may be converted to MBR", "give --boot-mode uefi to keep it"
        )


def _has_gpt(facts: Facts) -> bool:
    table = boot_table(facts)
    return table is not None and table.scheme == "gpt"


@check("VMIE-WIN-05")
def no_emergency_management(facts: Facts) -> Iterator[Outcome]:
    """No object of a BCD store has bootems (0x16000020) or ems (0x260000b0), and no line of boot.ini has /redirect."""
    boot = windows_of(facts).boot
    if not boot.stores and not boot.boot_inis:
        yield unknown("no BCD store and no boot.ini was found")
    for store in boot.stores:
        for found in store.objects.values():
            for element, name in ((LIBRARY_EMS, "bootems"), (OS_EMS, "ems")):
                if found.number(element):
                    yield failed(found.evidence(element, name), "bcdedit /ems off and bcdedit /bootems off")
        yield passed(f"{store.where}: EMS is off")
    for old in boot.boot_inis:
        for number, line in old.redirects:
            yield failed(f"{old.where}:{number}: {line[:MAX_TEXT]}", "bootcfg /ems off /id 1")


@check("VMIE-WIN-28")
def one_boot_choice(facts: Facts) -> Iterator[Outcome]:
    """The menu of every BCD store or boot.ini has one entry or a timeout of 0, and at most one partition of each MBR is
    active.
    """
    boot = windows_of(facts).boot
    if not boot.stores and not boot.boot_inis:
        yield unknown("no BCD store and no boot.ini was found")
    for store in boot.stores:
        if len(store.menu) > 1 and store.timeout:
            names = ", ".join(found.text(LIBRARY_DESCRIPTION) or found.id for found in store.menu[:MAX_SHOWN])
            yield failed(
                f"{store.where}: the menu has {len(store.menu)} entries ({names}) and waits {store.timeout} s",
                "bcdedit /delete {identifier} for all but one, or bcdedit /timeout 0",
            )
        else:
            yield passed(f"{store.where}: the menu has {len(store.menu)} entries")
    for old in boot.boot_inis:
        if len(old.entries) > 1 and old.timeout:
            lines = ", ".join(str(number) for number, _ in old.entries[:MAX_SHOWN])
            yield failed(f"{old.where}: lines {lines}: {len(old.entries)} systems, and it waits {old.timeout} s")
    for disk, table in facts.partition_tables:
        active = [one.number for one in (table.partitions if table is not None else ()) if one.bootable]
        if table is not None and table.scheme == "mbr" and len(active) > 1:
            yield failed(f"disk{disk.index}: partitions {', '.join(map(str, active))} are active", "leave one active")


@check("VMIE-WIN-30")
def starts_to_login(facts: Facts) -> Iterator[Outcome]:
    """The entry that boots is a loader of Windows and no recovery environment, or boot.ini has an entry. Whether it
    starts to the end is not knowable from outside; a hint is recovery that is enabled without an environment to start.
    """
    boot = windows_of(facts).boot
    if not boot.stores and not boot.boot_inis:
        yield unknown("no BCD store and no boot.ini was found")
    for old in boot.boot_inis:
        if old.entries:
            yield passed(f"{old.where}:{old.entries[0][0]}: {old.entries[0][1][:MAX_TEXT]}")
        else:
            yield failed(f"{old.where} has no line under [operating systems]", "rebuild it: bootcfg /rebuild")
    for store in boot.stores:
        entry = store.default
        if entry is None:
            yield failed(f"{store.where} has no entry to boot", "rebuild it: bcdboot C:\\Windows")
            continue
        others = {name.lower() for found in store.objects.values() for name in found.texts(RECOVERY_SEQUENCE)}
        if entry.id.lower() in others:
            yield failed(f"{store.where}: the default entry {entry.id} is the recovery environment of another")
        elif not _loads_windows(entry):
            yield failed(
                entry.evidence(LIBRARY_PATH, "path"), "rebuild it: bcdboot C:\\Windows", severity=Severity.WARNING
            )
        elif entry.number(RECOVERY_ENABLED) and not entry.texts(RECOVERY_SEQUENCE):
            yield failed(
                f"{entry.evidence(RECOVERY_ENABLED, 'recoveryenabled')}, and no recoverysequence",
                "bcdedit /set {default} recoveryenabled No",
                severity=Severity.INFO,
            )
        else:
            yield passed(
                f"{entry.evidence(LIBRARY_PATH, 'path')}; {entry.evidence(BOOT_STATUS_POLICY, 'bootstatuspolicy')}"
            )


def _loads_windows(entry: BcdObject) -> bool:
    name = entry.text(LIBRARY_PATH).lower().rpartition("\\")[2]
    return name in {"winload.exe", "winload.efi", "winresume.exe", "winresume.efi", "ntldr"}
