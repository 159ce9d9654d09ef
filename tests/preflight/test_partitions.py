"""VMIE-FS and what of VMIE-GEN the partitions show: disks of sfdisk, file systems of the mkfs programs."""

import shutil
from pathlib import Path

import pytest

from tests.preflight.checking import MIB, disk, result_of, run, status_of

GPT = "label: gpt\nsize=24M,type=L\nsize=24M,type=L\n"
MBR = "label: dos\nsize=24M,type=83\nsize=24M,type=83\n"
FIRST, SECOND = MIB, 25 * MIB


def with_filesystems(path: Path, script: str, *kinds: str, tree: Path | None = None) -> Path:
    """Make a disk of 64 MiB with a file system on each partition; the first ext4 gets the files of `tree`."""
    disk(path, script)
    for place, kind in zip((FIRST, SECOND), kinds, strict=False):
        part = path.with_name(f"{path.stem}-{kind}-{place}")
        size = 24 * MIB
        with part.open("wb") as file:
            file.truncate(size)
        if kind == "ext4":
            run("mkfs.ext4", "-q", "-F", *(["-d", tree] if tree is not None else []), part)
            tree = None
        elif kind in {"ext2", "ext3"}:
            run(f"mkfs.{kind}", "-q", "-F", part)
        elif kind == "vfat":
            run("mkfs.vfat", part)
        elif kind == "swap":
            run("mkswap", part)
        elif kind == "ntfs":
            run("mkfs.ntfs", "-q", "-F", "-f", part)
        else:
            data = bytearray(size)
            offset, magic = SIGNATURES[kind]
            data[offset : offset + len(magic)] = magic
            part.write_bytes(data)
        with path.open("r+b") as whole:
            whole.seek(place)
            whole.write(part.read_bytes())
        part.unlink()
    return path


SIGNATURES = {
    "reiserfs": (0x10034, b"ReIsEr2Fs"),
    "LUKS": (0, b"LUKS\xba\xbe\x00\x02"),
    "BitLocker": (0, b"\xeb\x58\x90-FVE-FS-"),
}
"""Of formats whose programs are not everywhere, or would ask for a password."""


def linux_tree(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    (tree / "etc/debian_version").write_text("12.4\n")
    (tree / "etc/fstab").write_text("/dev/sda1 / ext4 defaults 0 1\n")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return tree


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (("ext4", "swap"), "pass"), (("ext2", "ext3"), "pass"), (("ext4", "vfat"), "pass"),
        (("ext4", "ntfs"), "fail"), (("ext4", "reiserfs"), "fail"),
    ],
)  # fmt: skip
def test_file_systems_of_linux(tmp_path: Path, kinds: tuple[str, ...], status: str) -> None:
    if "ntfs" in kinds and shutil.which("mkfs.ntfs") is None:
        pytest.skip("mkfs.ntfs is not installed")
    path = with_filesystems(tmp_path / "disk.raw", MBR if "ext2" in kinds else GPT, *kinds)
    found = result_of(path, "VMIE-FS-01", "import-snapshot")
    assert found.status.value == status
    if status == "fail":
        assert found.found == f"disk0p2, at offset {SECOND:#x} of disk0, is {kinds[1]}"


@pytest.mark.parametrize(("script", "status"), [(GPT, "fail"), (MBR, "pass")])
def test_the_root_of_an_instance_is_on_an_mbr(tmp_path: Path, script: str, status: str) -> None:
    path = with_filesystems(tmp_path / "disk.raw", script, "ext4", tree=linux_tree(tmp_path))
    found = result_of(path, "VMIE-FS-06", "import-instance")
    assert found.status.value == status
    assert "the system" in found.found
    assert found.rule.message is not None
    assert found.rule.message.startswith("Client.Unsupported: No bootable partition found.")


def test_a_disk_without_a_table_is_no_root_of_an_instance(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    assert status_of(tmp_path / "disk.raw", "VMIE-FS-06", "import-instance") == "fail"


@pytest.mark.parametrize(("kind", "name"), [("LUKS", "LUKS"), ("BitLocker", "BitLocker")])
def test_an_encrypted_partition_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = with_filesystems(tmp_path / "disk.raw", GPT, "ext4", kind)
    found = result_of(path, "VMIE-GEN-03")
    assert found.status.value == "fail"
    assert found.found == f"disk0p2, at offset {SECOND:#x} of disk0, is encrypted with {name}"


def test_encryption_in_crypttab_and_descriptor(tmp_path: Path) -> None:
    tree = linux_tree(tmp_path)
    (tree / "etc/crypttab").write_text("# name device key options\nswap /dev/sda2 /dev/urandom swap,cipher=aes\n")
    path = with_filesystems(tmp_path / "disk.raw", GPT, "ext4", tree=tree)
    assert status_of(path, "VMIE-GEN-03") == "pass"
    (tree / "etc/crypttab").write_text("# name device key options\n\ndata UUID=12-34 none luks\n")
    path = with_filesystems(tmp_path / "other.raw", GPT, "ext4", tree=tree)
    assert result_of(path, "VMIE-GEN-03").found == "/etc/crypttab:3: data"
    (tmp_path / "disk.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n"
        "encryption.keySafe = \"vmware:key\"\nRW 8192 VMFS \"disk-flat.vmdk\"\n"
    )  # fmt: skip
    assert "encryption.keysafe" in result_of(tmp_path / "disk.vmdk", "VMIE-GEN-03", volumes=()).found


def test_two_systems_are_a_dual_boot(tmp_path: Path) -> None:
    tree = linux_tree(tmp_path)
    one = with_filesystems(tmp_path / "one.raw", GPT, "ext4", "swap", tree=tree)
    assert status_of(one, "VMIE-GEN-02") == "pass"
    two = with_filesystems(tmp_path / "two.raw", GPT, "ext4", "ext4", tree=tree)
    data = one.read_bytes()[FIRST : FIRST + 24 * MIB]
    with two.open("r+b") as file:
        file.seek(SECOND)
        file.write(data)
    found = result_of(two, "VMIE-GEN-02")
    assert found.status.value == "fail"
    assert "disk0p1:/etc" in found.found
    assert "disk0p2:/etc" in found.found
