"""What the import changes in a Linux guest: fstab lines as the service's guide describes them, addresses, GRUB."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from diskfs.guest.files import Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.answer import answer
from diskfs.preflight.opening import open_facts
from diskfs.preflight.request import Operation, Request
from tests.preflight.checking import MIB, disk, run
from tests.preflight.test_general import DEBIAN

ROOT = "11111111-2222-4333-8444-555555555555"
SWAP = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"


def changes_of(folder: Path, fstab: str, operation: Operation = Operation.IMPORT_IMAGE, **more: str) -> dict[str, str]:
    """Return {where: what} for a guest with this fstab on sda1 (ext4), sda2 (swap), and a volume group vg0."""
    root = folder / "root"
    for name, data in {
        **DEBIAN,
        "etc/fstab": fstab,
        **{key.replace("__", "/"): one for key, one in more.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    image = disk(folder / "disk.raw", "label: dos\nsize=8M,type=83,bootable\nsize=8M,type=82\ntype=8e\n", 32 * MIB)
    swap = folder / "swap"
    swap.write_bytes(bytes(8 * MIB))
    run("mkswap", "--quiet", "-U", SWAP, swap)
    with image.open("r+b") as whole:
        whole.seek(9 * MIB)
        whole.write(swap.read_bytes())
    volumes: Sequence[Volume] = (
        Volume("disk0p1", 0, 1, MIB, 8 * MIB, "ext4", FolderFiles(root, uuid=ROOT)),
        Volume("disk0p2", 0, 2, 9 * MIB, 8 * MIB, "swap"),
        Volume("disk0p3:vg0/data", 0, 3, 17 * MIB, 4 * MIB, "ext4", FolderFiles(folder / "swap.d", volume="disk0p3")),
    )
    with open_facts(str(image), Request(operation)) as facts:
        facts.__dict__["volumes"] = volumes
        return {change.where: change.what for change in answer(facts).changes}


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("/dev/sda1 / ext4 defaults 1 1", f"/dev/sda1 becomes UUID={ROOT}, going by the order of the disks"),
        ("/dev/sda2 swap swap defaults 0 0", f"/dev/sda2 becomes UUID={SWAP}, going by the order of the disks"),
        ("/dev/sdb1 /data xfs defaults 0 0", "/data gets the option nofail"),
        ("/dev/sdb1 /data xfs defaults,nofail 0 0", ""),
        ("//srv/share /mnt/s cifs credentials=/root/c 0 0", "/mnt/s is disabled, for its type, cifs"),
        ("host:/x /mnt/x sshfs defaults 0 0", "/mnt/x is disabled, for its type, sshfs"),
        ("share /media/sf vboxsf defaults 0 0", "/media/sf is disabled, for its type, vboxsf"),
        ("/dev/vg0/data /data ext4 defaults 0 1", ""),
        ("/dev/mapper/vg0-data /data ext4 defaults 0 1", ""),
        (f"UUID={ROOT} /x ext4 defaults 0 1", ""),
        ("UUID=99999999-2222-4333-8444-555555555555 /x ext4 defaults 0 1", "/x gets the option nofail"),
        ("tmpfs /tmp tmpfs defaults 0 0", ""),
        ("/swapfile none swap sw 0 0", ""),
        ("/home /srv none bind 0 0", ""),
        ("srv:/x /mnt/n nfs defaults 0 0", ""),
        ("/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0", "/media/cdrom0 is commented out"),
        ("garbage", "the line is commented out"),
        ("/dev/sda1 relative ext4 defaults 0 0", "the line is commented out"),
    ],
)
def test_lines_of_fstab(tmp_path: Path, line: str, change: str) -> None:
    found = changes_of(tmp_path, f"# comment\n\n{line}\n")
    told = found.get("/etc/fstab:3", "")
    assert told.startswith(change) if change else told == ""
    assert "/etc/fstab:1" not in found


def test_addresses_and_grub(tmp_path: Path) -> None:
    static = "auto eth0\niface eth0 inet static\n address 10.0.0.5/24\n"
    found = changes_of(tmp_path, f"UUID={ROOT} / ext4 defaults 0 1\n", etc__network__interfaces=static)
    assert found["/etc/network/interfaces:3"] == "eth0 loses its address 10.0.0.5/24 and gets DHCP"
    assert "timeout" in found["/boot/grub/grub.cfg"]
    assert "Systems Manager" in found["system"]


def test_a_snapshot_is_left_as_it_is(tmp_path: Path) -> None:
    assert changes_of(tmp_path, "/dev/sda1 / ext4 defaults 1 1\n", Operation.IMPORT_SNAPSHOT) == {}
