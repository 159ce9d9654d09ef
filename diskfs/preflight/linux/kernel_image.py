"""Kernel images: which release one is, and for which processor.

Specification: Linux, Documentation/arch/x86/boot.rst (setup header, `kernel_version` at 0x20E, `xloadflags` at 0x236);
Documentation/arch/arm64/booting.rst (magic `ARM\\x64` at 56). Little-endian.
"""

from dataclasses import dataclass

from construct import Const, Int8ul, Int16ul, Padding, Struct

from diskfs_formats.source import ByteSource

SETUP_HEADER = Struct(
    "setup_sects" / Int8ul,
    Padding(12),
    "boot_flag" / Int16ul,
    Padding(2),
    "header" / Const(b"HdrS"),
    "version" / Int16ul,
    Padding(6),
    "kernel_version" / Int16ul,
    Padding(38),
    "xloadflags" / Int16ul,
    Padding(8),
)
SETUP_HEADER_OFFSET = 0x1F1
assert SETUP_HEADER.sizeof() == 0x240 - SETUP_HEADER_OFFSET
PROTOCOL_WITH_XLOADFLAGS = 0x020C
XLF_KERNEL_64 = 1
MAX_RELEASE = 256
ARM64_MAGIC = b"ARM\x64"


@dataclass(frozen=True, slots=True)
class KernelImage:
    """`release` is the first word of the version text, such as 6.1.0-18-amd64; `machine` x86_64, i386, aarch64 or ''.

    A bzImage of before Linux 3.8 does not say whether it is for 64 bits: its machine is ''.
    """

    release: str
    version: str
    machine: str


def read_kernel_image(source: ByteSource) -> KernelImage | None:
    """Read what a vmlinuz says of itself; None if it is of no known form. Raises what the source raises."""
    head = source.read_at(0, min(0x240, source.size))
    if head[56:60] == ARM64_MAGIC:
        return KernelImage("", "", "aarch64")
    if len(head) < 0x240 or head[0x202:0x206] != b"HdrS" or head[0x1FE:0x200] != b"\x55\xaa":
        return None
    header = SETUP_HEADER.parse(head[SETUP_HEADER_OFFSET:0x240])
    version = ""
    offset = 0x200 + header.kernel_version
    # The text is in the setup sectors; a pointer beyond them, or none, is an image without a version.
    if header.kernel_version and offset < ((header.setup_sects or 4) + 1) * 512:
        text = source.read_at(offset, max(0, min(MAX_RELEASE, source.size - offset)))
        version = text.partition(b"\0")[0].decode("ascii", "backslashreplace")
    machine = ""
    if header.version >= PROTOCOL_WITH_XLOADFLAGS:
        machine = "x86_64" if header.xloadflags & XLF_KERNEL_64 else "i386"
    return KernelImage(version.split(" ")[0], version, machine)
