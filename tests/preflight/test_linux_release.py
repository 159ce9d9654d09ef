"""Which distribution a guest is, by the files that real releases had, and whether the table lists it."""

from pathlib import Path

import pytest

from diskfs.guest.errors import GuestError
from diskfs.guest.files import Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.linux.devices import Devices
from diskfs.preflight.linux.release import find_release
from diskfs.preflight.linux.roots import find_roots, mount_tree
from diskfs.preflight.linux.tree import GuestTree, Prefixed
from diskfs.preflight.linux.versions import has_prefix, rpm_key_compare
from diskfs.preflight.rules.linux_systems import rows_of, system_of

RELEASES: dict[str, tuple[dict[str, str], tuple[str, str, int | None], str | None, bool]] = {
    "Debian 12.4": (
        {"/etc/os-release": 'ID=debian\nVERSION_ID="12"\n', "/etc/debian_version": "12.4\n"},
        ("debian", "12.4", None), "debian", True,
    ),
    "Debian 12.5": (
        {"/etc/os-release": 'ID=debian\nVERSION_ID="12"\n', "/etc/debian_version": "12.5\n"},
        ("debian", "12.5", None), "debian", False,
    ),
    "Debian 11.9": (
        {"/etc/os-release": "ID=debian\nVERSION_ID=11\n", "/etc/debian_version": "11.9\n"},
        ("debian", "11.9", None), "debian", True,
    ),
    "Debian testing": (
        {"/etc/os-release": "ID=debian\nNAME=Debian\n", "/etc/debian_version": "trixie/sid\n"},
        ("debian", "", None), "debian", False,
    ),
    "Debian 6": ({"/etc/debian_version": "6.0.8\n"}, ("debian", "6.0.8", None), "debian", True),
    "Ubuntu 22.04": (
        {"/etc/os-release": "ID=ubuntu\nVERSION_ID='22.04'\n", "/etc/debian_version": "bookworm/sid\n"},
        ("ubuntu", "22.04", None), "ubuntu", True,
    ),
    "Ubuntu 12.04": (
        {"/etc/lsb-release": 'DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=12.04\nDISTRIB_DESCRIPTION="Ubuntu 12.04.5 LTS"\n'},
        ("ubuntu", "12.04", None), "ubuntu", True,
    ),
    "CentOS 6": (
        {"/etc/redhat-release": "CentOS release 6.8 (Final)\n"}, ("centos", "6.8", None), "centos", True,
    ),
    "CentOS 7": (
        {"/etc/os-release": 'ID="centos"\nVERSION_ID="7"\n',
         "/etc/centos-release": "CentOS Linux release 7.9.2009 (Core)\n"},
        ("centos", "7.9", None), "centos", True,
    ),
    "CentOS 8.5": (
        {"/etc/os-release": 'ID="centos"\nVERSION_ID="8"\n', "/etc/redhat-release": "CentOS Linux release 8.5.2111\n"},
        ("centos", "8.5", None), "centos", False,
    ),
    "RHEL 5": (
        {"/etc/redhat-release": "Red Hat Enterprise Linux Server release 5.11 (Tikanga)\n"},
        ("rhel", "5.11", None), "rhel", True,
    ),
    "RHEL 4": (
        {"/etc/redhat-release": "Red Hat Enterprise Linux AS release 4 (Nahant Update 8)\n"},
        ("rhel", "4.8", None), "rhel", False,
    ),
    "RHEL 9.4": ({"/etc/os-release": 'ID="rhel"\nVERSION_ID="9.4"\n'}, ("rhel", "9.4", None), "rhel", True),
    "RHEL 8.10": ({"/etc/os-release": 'ID="rhel"\nVERSION_ID="8.10"\n'}, ("rhel", "8.10", None), "rhel", False),
    "Oracle Linux 6": (
        {"/etc/oracle-release": "Oracle Linux Server release 6.10\n",
         "/etc/redhat-release": "Red Hat Enterprise Linux Server release 6.10 (Santiago)\n"},
        ("ol", "6.10", None), "oracle-linux", True,
    ),
    "Amazon Linux 2": ({"/etc/os-release": 'ID="amzn"\nVERSION_ID="2"\n'}, ("amzn", "2", None), "amazon-linux-2", True),
    "Amazon Linux 2023": (
        {"/usr/lib/os-release": 'ID="amzn"\nVERSION_ID="2023"\n', "/etc/os-release": "-> ../usr/lib/os-release"},
        ("amzn", "2023", None), "amazon-linux-2023", True,
    ),
    "Amazon Linux 1": (
        {"/etc/system-release": "Amazon Linux AMI release 2018.03\n"}, ("amzn", "2018.03", None), None, False,
    ),
    "SLES 11 SP4": (
        {"/etc/SuSE-release": "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\nPATCHLEVEL = 4\n"},
        ("sles", "11", 4), "sles", True,
    ),
    "SLES 15 SP5": ({"/etc/os-release": 'ID="sles"\nVERSION_ID="15.5"\n'}, ("sles", "15", 5), "sles", True),
    "SLES 15 SP7": ({"/etc/os-release": 'ID="sles"\nVERSION_ID="15.7"\n'}, ("sles", "15", 7), "sles", False),
    "Rocky 9.3": ({"/etc/os-release": 'ID="rocky"\nVERSION_ID="9.3"\n'}, ("rocky", "9.3", None), "rocky", True),
    "Fedora 39": ({"/etc/os-release": "ID=fedora\nVERSION_ID=39\n"}, ("fedora", "39", None), "fedora", True),
    "Gentoo": ({"/etc/os-release": "ID=gentoo\nVERSION_ID=2.14\n"}, ("gentoo", "2.14", None), None, False),
}  # fmt: skip


def _folder(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
    return folder


def _tree(folder: Path, files: dict[str, str]) -> GuestTree:
    folder.mkdir(exist_ok=True)
    return GuestTree({"/": Prefixed(FolderFiles(_folder(folder, files)), "")})


@pytest.mark.parametrize("name", RELEASES)
def test_the_release_and_whether_it_is_listed(tmp_path: Path, name: str) -> None:
    files, expected, system_id, is_listed = RELEASES[name]
    release = find_release(_tree(tmp_path, files))
    assert release is not None
    assert (release.id, release.version, release.service_pack) == expected
    system = system_of(release)
    assert (system.id if system else None) == system_id
    assert any(not row.later for row in rows_of(release)) is is_listed


def test_a_guest_without_release_files_is_none(tmp_path: Path) -> None:
    assert find_release(_tree(tmp_path, {"/etc/issue": "Linux\n"})) is None


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    # The pairs of RPM's own documentation and test suite.
    [
        ("1.0", "1.0", 0), ("1.0", "2.0", -1), ("2.0.1", "2.0", 1), ("5.5p1", "5.5p10", -1), ("10xyz", "10.1xyz", -1),
        ("xyz10", "xyz10.1", -1), ("6.0.rc1", "6.0", 1), ("10b2", "10a1", 1), ("1.0~rc1", "1.0", -1),
        ("1.0^", "1.0", 1),
        ("1.0^git1", "1.01", -1), ("4.18.0-80.el8", "4.18.0-193.el8", -1), ("1.05", "1.5", 0), ("a", "1", -1),
    ],
)  # fmt: skip
def test_versions_compare_as_rpm_does(one: str, two: str, expected: int) -> None:
    assert rpm_key_compare(one, two) == expected
    assert rpm_key_compare(two, one) == -expected


def test_a_prefix_is_one_number_by_number() -> None:
    assert has_prefix("6.1.0-18-amd64", "6.1")
    assert not has_prefix("6.12.0", "6.1")
    assert has_prefix("3.10.0-1160.el7", "3.10.0")
    assert not has_prefix("", "3")


# Trees and mounts


def test_links_lead_across_mounts_and_never_out(tmp_path: Path) -> None:
    root = _folder(
        tmp_path / "root", {"/boot/.keep": "", "/vmlinuz": "-> boot/kernel", "/out": "-> ../../../../etc/passwd"}
    )
    boot = _folder(
        tmp_path / "boot", {"/kernel": "-> /boot/kernel-6", "/kernel-6": "six", "/up": "-> ../etc/os-release"}
    )
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text("ID=x\n")
    tree = GuestTree({"/": Prefixed(FolderFiles(root), ""), "/boot": Prefixed(FolderFiles(boot), "")})
    assert tree.text("/vmlinuz") == "six"
    assert tree.resolve("/vmlinuz") == "/boot/kernel-6"
    assert tree.text("/boot/up") == "ID=x\n"
    assert tree.text("/out") is None
    assert tree.names("/boot") == ["/boot/kernel", "/boot/kernel-6", "/boot/up"]


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    tree = _tree(tmp_path, {"/a": "-> b", "/b": "-> a", "/c/d": "-> ../c"})
    with pytest.raises(GuestError, match="circle"):
        tree.exists("/a")
    assert len(list(tree.walk("/c"))) < 50


def _volumes(tmp_path: Path, fstab: str) -> list[Volume]:
    root = _folder(tmp_path / "root", {"/etc/fstab": fstab, "/etc/passwd": "", "/srv/.keep": ""})
    boot = _folder(tmp_path / "boot", {"/here": "boot"})
    data = _folder(tmp_path / "data", {"/here": "data"})
    return [
        Volume("disk0p1", 0, 1, 1 << 20, 1, "ext4", FolderFiles(boot, uuid="aaaa-1", label="boot", volume="disk0p1")),
        Volume(
            "disk0p2:my-vg/root", 0, 2, 1 << 21, 1, "xfs", FolderFiles(root, uuid="bbbb-2", volume="disk0p2:my-vg/root")
        ),
        Volume("disk1p1", 1, 1, 1 << 20, 1, "ext4", FolderFiles(data, uuid="cccc-3", volume="disk1p1")),
    ]


@pytest.mark.parametrize(
    "spec", ["UUID=aaaa-1", "LABEL=boot", "/dev/sda1", "/dev/vda1", "/dev/nvme0n1p1", "/dev/disk/by-uuid/AAAA-1"]
)
def test_fstab_makes_the_tree_by_each_kind_of_name(tmp_path: Path, spec: str) -> None:
    volumes = _volumes(
        tmp_path,
        f"/dev/mapper/my--vg-root / xfs defaults 0 0\n{spec} /boot ext4 defaults 0 2\n/dev/sdb1 /srv ext4 ro 0 0\n",
    )
    (root,) = find_roots(volumes)
    devices = Devices(volumes, (), ())
    tree, mounts = mount_tree(root, devices)
    assert {path: volume.name for path, volume in mounts.items()} == {
        "/": "disk0p2:my-vg/root", "/boot": "disk0p1", "/srv": "disk1p1",
    }  # fmt: skip
    assert tree.text("/boot/here") == "boot"
    assert tree.text("/srv/here") == "data"


def test_names_of_logical_volumes(tmp_path: Path) -> None:
    volumes = _volumes(tmp_path, "")
    devices = Devices(volumes, (), ())
    for spec in ("/dev/mapper/my--vg-root", "/dev/my-vg/root"):
        match = devices.resolve(spec)
        assert match is not None
        assert match.volume is volumes[1]
        assert not match.by_order
    for spec in ("/dev/mapper/my-vg-root", "/dev/mapper/x", "/dev/sdc1", "/dev/sda9", "UUID=", "LABEL=", "UUID=1"):
        assert devices.resolve(spec) is None
    by_order = devices.resolve("/dev/sdb1")
    assert by_order is not None
    assert by_order.by_order


def test_the_root_may_be_in_a_subvolume(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path / "b",
        {"/@/etc/os-release": "ID=x\n", "/@/etc/fstab": "UUID=1 / btrfs subvol=@ 0 0\n", "/@home/.k": ""},
    )
    volume = Volume("disk0p1", 0, 1, 0, 1, "btrfs", FolderFiles(folder, kind="btrfs", uuid="1"))
    (root,) = find_roots([volume])
    assert root.prefix == "/@"
    tree, _ = mount_tree(root, Devices([volume], (), ()))
    assert tree.text("/etc/os-release") == "ID=x\n"
