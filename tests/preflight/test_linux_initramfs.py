"""Kernels and initramfs: archives that cpio and real compressors make, and hostile ones."""

import lzma
import subprocess
import zlib
from pathlib import Path

import pytest

from diskfs.preflight.linux import cpio as cpio_module
from diskfs.preflight.linux import initramfs as initramfs_module
from diskfs.preflight.linux.elf import parse_elf
from diskfs.preflight.linux.initramfs import Initramfs, read_initramfs
from diskfs.preflight.linux.kernel_image import read_kernel_image
from diskfs_formats.source import MemorySource
from tests.preflight.linux_guest import RELEASE, compress, cpio, initramfs, kernel_image

NAMES = {"nvme", "nvme_core", "xen_blkfront", "xen_netfront", "virtio_blk"}


def _read(data: bytes) -> Initramfs:
    return read_initramfs(MemorySource(data, "initrd"), "/boot/initrd")


@pytest.mark.parametrize("compression", ["none", "gzip", "bzip2", "xz", "lzma", "zstd", "lz4"])
@pytest.mark.parametrize("microcode", [True, False], ids=["microcode", "plain"])
def test_every_compression_is_read(compression: str, microcode: bool) -> None:
    found = _read(initramfs(compression=compression, microcode=microcode))
    assert found.problem == ""
    assert found.modules == NAMES
    assert found.releases == {RELEASE}
    assert found.compressions == (["none"] if microcode else []) + [compression]


def test_the_members_are_those_that_cpio_lists(tmp_path: Path) -> None:
    data = initramfs(compression="none", microcode=False)
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=data, check=True, capture_output=True).stdout.split()
    assert _read(data).members == len(listed)


def test_archives_may_follow_each_other_with_zeros_between() -> None:
    found = _read(initramfs(("a/one.ko",)) + bytes(1024) + initramfs(("b/two.ko",), compression="xz", microcode=False))
    assert found.problem == ""
    assert found.modules == {"one", "two"}
    assert found.compressions == ["none", "zstd", "xz"]


@pytest.mark.parametrize("compression", ["none", "gzip", "bzip2", "xz", "lzma", "zstd", "lz4"])
def test_a_cut_archive_is_a_problem_wherever_it_is_cut(compression: str) -> None:
    data = initramfs(compression=compression, microcode=False)
    end = len(data.rstrip(b"\0"))  # cpio fills its last block
    for length in {1, 5, end // 3, end // 2, end - 20}:
        assert _read(data[:length]).problem, length


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "zstd", "lz4"])
def test_a_damaged_archive_is_a_problem(compression: str) -> None:
    data = bytearray(initramfs(compression=compression, microcode=False))
    for index in range(len(data) // 2, len(data) // 2 + 24):
        data[index] ^= 0xA5
    assert _read(bytes(data)).problem


def test_what_is_none_is_told_by_its_first_bytes() -> None:
    assert "7f454c46" in _read(b"\x7fELF" + bytes(100)).problem
    assert "empty" in _read(b"").problem
    assert "zeros" in _read(bytes(4096)).problem
    found = _read(b"\x89LZO\0\r\n\x1a\n" + bytes(100))
    assert found.is_unsupported
    assert "lzo" in found.problem


def test_a_bomb_is_stopped_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs_module, "MAX_CONTENT", 4 << 20)
    packer = zlib.compressobj(wbits=31)
    head = b"070701" + b"%08x" * 13 % (1, 0o100644, 0, 0, 1, 0, 0xFFFFFFF0, 0, 0, 0, 0, 2, 0) + b"a\0"
    data = packer.compress(head + bytes(16 << 20)) + packer.flush()
    assert len(data) < 100_000
    assert "over the limit" in _read(data).problem


def test_memory_that_a_decoder_asks_for_is_bounded() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}]
    data = lzma.compress(b"x", lzma.FORMAT_XZ, filters=filters)
    assert "damaged" in _read(data).problem


def test_members_and_archives_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / str(index)).write_text("")
    packed = cpio(tmp_path)
    monkeypatch.setattr(cpio_module, "MAX_MEMBERS", 19)
    assert "over 19 files" in _read(packed).problem
    monkeypatch.undo()
    assert "archives follow" in _read(packed * 17).problem
    assert "archives follow" in _read(compress("gzip", packed * 17)).problem
    assert _read(packed * 15).problem == ""


@pytest.mark.parametrize("field", range(13))
def test_headers_of_nonsense_are_problems_and_no_more(field: int) -> None:
    data = bytearray(initramfs(compression="none", microcode=False))
    for value in (b"ffffffff", b"zzzzzzzz", b"-0000001"):
        data[6 + 8 * field : 14 + 8 * field] = value
        _read(bytes(data))


# Kernels and programs


def test_the_kernel_stand_in_is_one_that_file_knows(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(kernel_image())
    said = subprocess.run(["file", path], check=True, capture_output=True, text=True).stdout
    assert "Linux kernel x86 boot executable bzImage" in said
    assert f"version {RELEASE}" in said


def _kernel(data: bytes) -> tuple[str, str] | None:
    found = read_kernel_image(MemorySource(data))
    return (found.release, found.machine) if found else None


def test_a_kernel_tells_its_release_and_machine() -> None:
    assert _kernel(kernel_image()) == (RELEASE, "x86_64")
    assert _kernel(kernel_image("2.6.32-71.el6.i686", is_64_bit=False)) == ("2.6.32-71.el6.i686", "i386")
    old = bytearray(kernel_image("2.6.18-8.el5"))
    old[0x206:0x208] = (0x0204).to_bytes(2, "little")
    assert _kernel(bytes(old)) == ("2.6.18-8.el5", "")
    assert _kernel(bytes(56) + b"ARM\x64" + bytes(1000)) == ("", "aarch64")


def test_what_is_no_kernel_is_none() -> None:
    assert _kernel(b"") is None
    assert _kernel(b"\x7fELF" + bytes(5000)) is None
    assert _kernel(kernel_image()[:0x23F]) is None
    pointer = bytearray(kernel_image())
    pointer[0x20E:0x210] = b"\xff\xff"
    assert _kernel(bytes(pointer)) == ("", "x86_64")


def test_elf_headers_of_this_machine_and_others() -> None:
    with open("/proc/self/exe", "rb") as file:
        header = parse_elf(file.read(64))
    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout.strip()
    assert header is not None
    assert (header.bits, header.machine) == (64, machine)
    big = parse_elf(b"\x7fELF\x01\x02" + bytes(12) + b"\x00\x14")
    assert big is not None
    assert (big.bits, big.machine) == (32, "ppc")
    assert parse_elf(b"#!/bin/sh\n" + bytes(20)) is None
    assert parse_elf(b"\x7fELF\x02\x01") is None
