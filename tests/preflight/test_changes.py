"""What the import is predicted to change in /etc/fstab and the network: the test vectors of the guide's digest."""

from pathlib import Path

import pytest

from diskfs.guest.files import Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.changes import Change, linux_changes
from diskfs.preflight.linux import LinuxFacts
from diskfs.preflight.linux.devices import Devices
from diskfs.preflight.linux.roots import find_roots

ROOT_UUID = "11111111-1111-4111-8111-111111111111"
SWAP_UUID = "22222222-2222-4222-8222-222222222222"


class _Devices(Devices):
    """The swap's UUID is not read from a disk here."""

    def _read_uuid(self, volume: Volume) -> str:
        return SWAP_UUID if volume.filesystem == "swap" else ""


def _facts(folder: Path, fstab: str, *, lvm: bool = False) -> LinuxFacts:
    (folder / "etc/network").mkdir(parents=True)
    (folder / "etc/fstab").write_text(fstab)
    (folder / "etc/network/interfaces").write_text("iface eth0 inet static\n address 192.0.2.7\n")
    name = "disk0p1:vg0/root" if lvm else "disk0p1"
    volumes = [
        Volume(name, 0, 1, 1 << 20, 1, "ext4", FolderFiles(folder, uuid=ROOT_UUID, volume=name)),
        Volume("disk0p2", 0, 2, 2 << 20, 1, "swap"),
    ]
    return LinuxFacts(find_roots(volumes), _Devices(volumes, (), ()))


def _of_line(facts: LinuxFacts, line: int) -> str | None:
    return next((one.what for one in linux_changes(facts) if one.where == f"/etc/fstab:{line}"), None)


@pytest.mark.parametrize(
    ("line", "lvm", "expected"),
    [
        ("/dev/sda1 / ext4 defaults 1 1", False, f"UUID={ROOT_UUID}"),
        ("/dev/sda2 swap swap defaults 0 0", False, f"UUID={SWAP_UUID}"),
        ("/dev/sdb1 /data xfs defaults 0 0", False, "nofail"),
        ("/dev/sdb1 /data xfs defaults,nofail 0 0", False, None),
        ("//srv/share /mnt/s cifs credentials=/root/c 0 0", False, "disabled"),
        ("host:/x /mnt/x sshfs defaults 0 0", False, "disabled"),
        ("share /media/sf vboxsf defaults 0 0", False, "disabled"),
        ("/dev/vg0/root / ext4 defaults 0 1", True, None),
        (f"UUID={ROOT_UUID} / ext4 defaults 0 1", False, None),
        ("UUID=33333333-3333-4333-8333-333333333333 /x ext4 defaults 0 1", False, "nofail"),
        ("tmpfs /tmp tmpfs defaults 0 0", False, None),
        ("srv:/x /mnt nfs defaults 0 0", False, None),
        ("/swapfile none swap sw 0 0", False, None),
        ("/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0", False, "commented out"),
        ("garbage", False, "commented out"),
    ],
)
def test_a_line_of_fstab(tmp_path: Path, line: str, lvm: bool, expected: str | None) -> None:
    found = _of_line(_facts(tmp_path, f"# fstab\n{line}\n", lvm=lvm), 2)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert expected in found


def test_a_second_entry_for_a_mount_point_is_commented_out(tmp_path: Path) -> None:
    facts = _facts(tmp_path, f"UUID={ROOT_UUID} / ext4 defaults 0 1\nUUID={ROOT_UUID} / ext4 ro 0 1\n")
    assert _of_line(facts, 1) is None
    assert "commented out" in (_of_line(facts, 2) or "")


def test_static_addresses_become_dhcp_with_their_place(tmp_path: Path) -> None:
    changes = list(linux_changes(_facts(tmp_path, f"UUID={ROOT_UUID} / ext4 defaults 0 1\n")))
    assert Change("/etc/network/interfaces:2", "eth0 loses its address 192.0.2.7 and gets DHCP") in changes
