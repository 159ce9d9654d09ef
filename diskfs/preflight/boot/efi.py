"""The EFI system partition: which loaders are on it, and for which processor.

Specifications: UEFI 2.10, 3.5.1.1 (removable media: \\EFI\\BOOT\\BOOTX64.EFI); Microsoft PE Format (offset of the
header at 0x3C, machine after the signature).
"""

from dataclasses import dataclass, field
from uuid import UUID

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestFiles, Volume

ESP_GUID = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
ESP_MBR_TYPE = 0xEF
FALLBACK = "/EFI/BOOT/BOOTX64.EFI"
PE_MACHINES = {0x8664: "x86_64", 0x014C: "i386", 0xAA64: "aarch64", 0x01C0: "arm", 0x5064: "riscv64"}
MAX_FOLDERS = 64
MAX_LOADERS = 200


@dataclass(frozen=True, slots=True)
class EfiProgram:
    path: str
    machine: str
    """By its PE header; empty if it is none."""
    size: int


@dataclass(slots=True)
class EfiPartition:
    """One EFI system partition. `problem` is why it cannot be read, if so."""

    volume: Volume
    programs: list[EfiProgram] = field(default_factory=list)
    problem: str = ""
    has_systemd_boot: bool = False

    @property
    def fallback(self) -> EfiProgram | None:
        """\\EFI\\BOOT\\BOOTX64.EFI, in whatever case it is written."""
        return next((one for one in self.programs if one.path.lower() == FALLBACK.lower()), None)

    @property
    def loaders(self) -> list[EfiProgram]:
        """The programs that a machine with an x86-64 processor can run."""
        return [one for one in self.programs if one.machine == "x86_64"]


def pe_machine(head: bytes) -> str:
    """Return the machine of a PE program by its first 4 KiB; empty if it is none."""
    if len(head) < 0x40 or head[:2] != b"MZ":
        return ""
    offset = int.from_bytes(head[0x3C:0x40], "little")
    if offset > len(head) - 6 or head[offset : offset + 4] != b"PE\0\0":
        return ""
    number = int.from_bytes(head[offset + 4 : offset + 6], "little")
    return PE_MACHINES.get(number, f"machine {number:#06x}")


def read_efi_partition(volume: Volume) -> EfiPartition:
    """List the programs in the folders of \\EFI; what cannot be read is the partition's `problem`."""
    found = EfiPartition(volume)
    if volume.files is None:
        found.problem = volume.problem or f"{volume.name}: it holds no file system that is read"
        return found
    try:
        _read(volume.files, found)
    except GuestError as error:
        found.problem = str(error)
    return found


def _read(files: GuestFiles, found: EfiPartition) -> None:
    base = files.entry("/EFI")
    if base is None or base.kind is not FileKind.FOLDER:
        return
    folders = [f"/EFI/{entry.name}" for entry in files.entries("/EFI") if entry.kind is FileKind.FOLDER][:MAX_FOLDERS]
    if any(folder.lower() == "/efi/microsoft" for folder in folders):
        boot = f"{next(folder for folder in folders if folder.lower() == '/efi/microsoft')}/Boot"
        if files.entry(boot) is not None:
            folders.append(boot)
    for folder in folders:
        for entry in files.entries(folder):
            if entry.kind is not FileKind.FILE or not entry.name.lower().endswith(".efi"):
                continue
            if len(found.programs) >= MAX_LOADERS:
                return
            path = f"{folder}/{entry.name}"
            source = files.open(path)
            found.programs.append(EfiProgram(path, pe_machine(source.read_at(0, min(4096, source.size))), entry.size))
            if entry.name.lower().startswith("systemd-boot"):
                found.has_systemd_boot = True
