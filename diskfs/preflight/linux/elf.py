"""For which processor a program of the guest is, by its ELF header.

Specification: System V ABI, ELF header: class at 4, byte order at 5, e_machine at 18.
"""

from dataclasses import dataclass

MACHINES = {
    3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv",
    258: "loongarch",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ElfHeader:
    bits: int
    machine: str
    """As uname -m says it, or the number."""


def parse_elf(head: bytes) -> ElfHeader | None:
    """Return what the first 20 bytes of a program say, or None if it is no ELF file."""
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[4] not in {1, 2} or head[5] not in {1, 2}:
        return None
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return ElfHeader(32 * head[4], MACHINES.get(number, f"e_machine {number}"))
