"""fstab: what libmount takes, by findmnt's own word, and what is made of the fields."""

import json
import subprocess
from pathlib import Path

import pytest

from diskfs.preflight.linux.fstab import FstabEntry, parse_fstab
from diskfs.preflight.linux.text import MAX_LINES

LINES = """\
# a comment
UUID=1111 / ext4 errors=remount-ro 0 1

\t UUID=2222\t/home\text4\tdefaults\t0\t2
LABEL=a\\040b /srv/with\\040blank xfs noatime
/dev/sda2 none swap sw 0 0
/dev/sda3 swap swap
tmpfs /tmp tmpfs size=1G,mode=1777 0 0
//srv/share /mnt/s cifs credentials=/root/c 0 0
   # another comment
proc /proc proc defaults
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
/swapfile none swap sw 0 0
srv:/x /mnt/x nfs4 _netdev,ro 0 0
PARTUUID=5d15c0f5-01 /boot vfat umask=0077 0 1
"""


def test_the_entries_are_those_that_findmnt_lists(tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    table.write_text(LINES)
    command = ["findmnt", "--tab-file", str(table), "--json", "--list", "--output", "SOURCE,TARGET,FSTYPE,OPTIONS"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["filesystems"]
    ours = parse_fstab(LINES)
    # findmnt leaves the options out of an entry that has none, and we say what mount(8) takes then.
    expected = [(one["source"], one["target"], one["fstype"]) for one in listed]
    assert [(one.spec, one.file, one.vfstype) for one in ours.entries] == expected
    assert [one.options for one in ours.entries if one.line == 2] == ["errors=remount-ro"]
    assert ours.invalid == ()


@pytest.mark.parametrize("line", ["garbage", "UUID=1 /", "UUID=1 / ext4 defaults x y", "UUID=1 data ext4 defaults 0 0"])
def test_a_line_that_mount_cannot_use_is_invalid(line: str) -> None:
    found = parse_fstab(f"UUID=2 / ext4 defaults 0 1\n{line}\n")
    assert len(found.entries) == 1
    assert [(one.line, one.text) for one in found.invalid] == [(2, line)]


def _entry(line: str) -> FstabEntry:
    (entry,) = parse_fstab(line).entries
    return entry


def test_what_an_entry_is_for() -> None:
    assert _entry("tmpfs /tmp tmpfs defaults 0 0").is_pseudo
    assert _entry("/var/log /srv/log none bind 0 0").is_pseudo
    assert _entry("/swapfile none swap sw 0 0").is_pseudo
    assert not _entry("/dev/sda1 / ext4 defaults 0 1").is_pseudo
    assert _entry("sshfs#me@host:/ /mnt fuse defaults 0 0").is_non_standard
    assert _entry("/dev/disk/by-uuid/1-2 / ext4 defaults 0 1").tag == ("UUID", "1-2")
    assert _entry('LABEL="root" / ext4 defaults 0 1').tag == ("LABEL", "root")
    assert _entry("/dev/sr0 /media udf noauto 0 0").is_optical


def test_a_huge_file_is_cut_and_read() -> None:
    found = parse_fstab("UUID=1 / ext4 defaults 0 1\n" * (MAX_LINES + 10))
    assert len(found.entries) == MAX_LINES


def test_nul_bytes_are_told() -> None:
    found = parse_fstab("\0" * 600)
    assert found.has_nul
    assert found.entries == ()
