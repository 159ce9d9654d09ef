"""What the mount shows: names, sizes, attributes, and that nothing can be changed through it."""

import errno
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.mounting import diskfs, environment, mounted, run, sha256

pytestmark = pytest.mark.fuse

MIB = 1 << 20


@pytest.fixture
def appliance(corpus: Path) -> Path:
    return corpus / "appliances/two-disks.ova"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which the temporary folders of tests are not."""
    folder = Path(tempfile.mkdtemp(prefix="diskfs-test-", dir="/run"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_appliance_shows_every_disk_partition_description_and_member(appliance: Path, tmp_path: Path) -> None:
    with mounted(appliance, tmp_path / "mnt") as mnt:
        assert sorted(os.listdir(mnt)) == sorted(
            [
                "disk0.raw", "disk0p1.raw", "disk0p2.raw", "disk0p3.raw", "disk0p4.raw", "disk0.json",
                "disk1.raw", "disk1p1.raw", "disk1p5.raw", "disk1p6.raw", "disk1.json", "export", "source",
            ]
        )  # fmt: skip
        members = run("tar", "tf", appliance).split()
        assert sorted(os.listdir(mnt / "source")) == sorted(members)
        for member in members:
            extracted = subprocess.run(["tar", "xOf", appliance, member], capture_output=True, check=True).stdout
            assert (mnt / "source" / member).read_bytes() == extracted


def test_partition_files_hold_what_sfdisk_says_is_there(appliance: Path, tmp_path: Path) -> None:
    with mounted(appliance, tmp_path / "mnt") as mnt:
        for disk in ("disk0", "disk1"):
            table = json.loads(run("sfdisk", "-J", mnt / f"{disk}.raw"))["partitiontable"]
            content = (mnt / f"{disk}.raw").read_bytes()
            for entry in table["partitions"]:
                number = entry["node"].rpartition("raw")[2]
                file = mnt / f"{disk}p{number}.raw"
                if not file.exists():
                    assert entry["type"] in {"5", "f", "85"}, "only a container has no file"
                    continue
                start, size = entry["start"] * 512, entry["size"] * 512
                assert file.read_bytes() == content[start : start + size]


def test_the_description_is_what_info_prints(appliance: Path, tmp_path: Path) -> None:
    described = json.loads(diskfs("info", "--json", appliance).stdout)["disks"]
    with mounted(appliance, tmp_path / "mnt") as mnt:
        for number in (0, 1):
            shown = json.loads((mnt / f"disk{number}.json").read_text())
            assert shown.pop("source") == appliance.name
            assert shown.pop("container") == "ova"
            assert shown == described[number]


def test_sizes_blocks_times_modes_and_owners(appliance: Path, tmp_path: Path) -> None:
    source = tmp_path / "vm.ova"
    shutil.copy(appliance, source)
    source.chmod(0o640)
    os.utime(source, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    mapped = json.loads(diskfs("map", "--json", source).stdout)
    # Reading the source has moved its access time, as the file system that it lies on is mounted to do.
    accessed = source.stat().st_atime_ns
    with mounted(source, tmp_path / "mnt") as mnt:
        found = (mnt / "disk0.raw").stat()
        assert found.st_size == 530583040
        assert found.st_blocks * 512 == sum(entry["length"] for entry in mapped if entry["data"])
        assert found.st_mtime_ns == 1_500_000_000_987_654_321
        assert found.st_atime_ns == accessed
        assert stat.S_IMODE(found.st_mode) == 0o440
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
        (mnt / "disk0.raw").read_bytes()
        assert (mnt / "disk0.raw").stat().st_atime_ns == accessed
        assert stat.S_IMODE(mnt.stat().st_mode) == 0o550


def test_inodes_are_the_same_in_every_mount(appliance: Path, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with mounted(appliance, tmp_path / "mnt") as mnt:
            seen.append({path.name: path.stat().st_ino for path in mnt.rglob("*")})
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == len(seen[0])


def test_statfs_tells_a_full_file_system_of_the_files_size(appliance: Path, tmp_path: Path) -> None:
    with mounted(appliance, tmp_path / "mnt") as mnt:
        found = os.statvfs(mnt)
        # What export/ shows are the same disks once more, and its sizes are not known before somebody looks.
        shown = [path for path in mnt.rglob("*") if path.is_file() and path.parent.name != "export"]
        total = sum(path.stat().st_size for path in shown)
        assert 0 <= found.f_blocks * found.f_frsize - total < found.f_frsize
        assert found.f_bavail == found.f_bfree == 0
        assert found.f_flag & os.ST_RDONLY


def test_every_change_is_answered_with_erofs(appliance: Path, tmp_path: Path) -> None:
    with mounted(appliance, tmp_path / "mnt") as mnt:
        file = mnt / "disk0.raw"
        for change in (
            lambda: os.open(file, os.O_WRONLY),
            lambda: os.open(file, os.O_RDWR),
            lambda: os.open(mnt / "new", os.O_CREAT | os.O_WRONLY),
            lambda: os.mkdir(mnt / "new"),
            lambda: os.unlink(file),
            lambda: os.rename(file, mnt / "other"),
            lambda: os.truncate(file, 0),
            lambda: os.utime(file),
            lambda: os.chmod(file, 0o600),
            lambda: os.symlink("x", mnt / "new"),
            lambda: os.setxattr(file, "user.x", b"1"),
        ):
            with pytest.raises(OSError, match="Read-only") as caught:
                change()
            assert caught.value.errno == errno.EROFS


def test_eight_readers_at_once_get_the_right_bytes(appliance: Path, tmp_path: Path) -> None:
    with mounted(appliance, tmp_path / "mnt") as mnt:
        content = (mnt / "disk1.raw").read_bytes()
        wrong: list[int] = []

        def read(seed: int) -> None:
            chance = random.Random(seed)
            file = os.open(mnt / "disk1.raw", os.O_RDONLY)
            for _ in range(100):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                offset = chance.randrange(len(content))
                length = chance.randrange(1, 300_000)
                if os.pread(file, length, offset) != content[offset : offset + length]:
                    wrong.append(offset)
            os.close(file)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_source_that_changes_fails_reads_of_what_is_not_cached(appliance: Path, tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(os.urandom(4 * MIB))
    with mounted(source, tmp_path / "mnt") as mnt:
        with (mnt / "disk0.raw").open("rb") as file:
            assert file.read(4096)
            os.truncate(source, MIB)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with pytest.raises(OSError, match="Stale") as caught:
                os.pread(file.fileno(), 4096, 2 * MIB)
            assert caught.value.errno == errno.ESTALE
        assert os.listdir(mnt)


def test_a_source_replaced_by_another_file_is_read_as_it_was_opened(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(b"1" * MIB)
    with mounted(source, tmp_path / "mnt") as mnt:
        (tmp_path / "new").write_bytes(b"2" * MIB)
        os.replace(tmp_path / "new", source)
        assert (mnt / "disk0.raw").read_bytes() == b"1" * MIB


def test_a_readable_disk_is_mounted_beside_one_that_is_not(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "appliance"
    folder.mkdir()
    run("tar", "xf", corpus / "appliances/two-disks.ova", "-C", folder)
    (folder / "vm-disk2.vmdk").write_bytes(b"KDMV" + bytes(1020))
    (folder / "vm.mf").unlink()
    with mounted(folder / "vm.ovf", tmp_path / "mnt") as mnt:
        assert (mnt / "disk0.raw").exists()
        assert not (mnt / "disk1.raw").exists()
        assert "version 0" in json.loads((mnt / "disk1.json").read_text())["error"]


def test_format_raw_shows_the_image_file_itself(appliance: Path, tmp_path: Path) -> None:
    with mounted(appliance, tmp_path / "mnt", "--format", "raw") as mnt:
        assert sha256(mnt / "disk0.raw") == sha256(appliance)


def test_options_of_mount_reach_the_kernel(appliance: Path, tmp_path: Path) -> None:
    with mounted(appliance, tmp_path / "mnt", "-o", "noexec") as mnt:
        line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {mnt} " in line)
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[3].split(","))


@pytest.mark.root
def test_other_users_are_kept_out_unless_allowed(appliance: Path, open_folder: Path) -> None:
    source = open_folder / "vm.ova"
    shutil.copy(appliance, source)
    other = ["--allow-other"]
    for mode, options, works in ((0o644, [], False), (0o644, other, True), (0o600, other, False)):
        source.chmod(mode)
        with mounted(source, open_folder / "mnt", *options) as mnt:
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "head", "-c1", mnt / "disk0.raw"]
            result = subprocess.run(list(map(str, command)), capture_output=True, check=False)
            assert (result.returncode == 0) is works, (mode, options, result.stderr)


@pytest.mark.root
def test_an_unprivileged_user_mounts_where_dev_fuse_permits(appliance: Path, open_folder: Path) -> None:
    """In a mount namespace of its own /dev/fuse is open to everybody, as it is on a usual system."""
    home = open_folder
    shutil.copy(appliance, home / "vm.ova")
    (home / "vm.ova").chmod(0o644)
    os.mknod(home / "fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    (home / "fuse").chmod(0o666)
    (home / "mnt").mkdir()
    os.chown(home / "mnt", 65534, 65534)
    # No right but to read: the interpreter may lie in a folder of root's.
    nobody = (
        "setpriv --reuid=65534 --regid=65534 --clear-groups "
        "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
    )
    script = (
        f"mount --bind {home}/fuse /dev/fuse && exec {nobody} sh -ec '"
        f"{sys.executable} -m diskfs mount {home}/vm.ova {home}/mnt; sha256sum <{home}/mnt/disk1.raw; id -u; "
        f"{sys.executable} -m diskfs umount {home}/mnt; ls {home}/mnt'"
    )
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    digest, user = result.stdout.split("\n")[:2]
    assert digest.startswith("92a1b3a0a94924c0bcb7b2d56e196ee969792785515f00c46cfd9ad21def46d3")
    assert user == "65534"


def test_a_name_from_an_image_puts_no_control_byte_anywhere(tmp_path: Path) -> None:
    source = tmp_path / "a\x1b]0;title\x07\r\n\u202ename.raw"
    source.write_bytes(bytes(MIB))
    result = diskfs("info", source)
    with mounted(source, tmp_path / "mnt") as mnt:
        names = run("ls", "-N", mnt / "source")
    for text in (result.stdout, result.stderr, names):
        assert not [character for character in text if ord(character) < 32 and character != "\n"]
        assert "\u202e" not in text
    with pytest.raises(AssertionError):
        diskfs("info", tmp_path / "missing\x1b[31m")
    message = diskfs("info", tmp_path / "missing\x1b[31m", expect=1).stderr
    assert "\x1b" not in message


def test_strange_names_in_other_mounts_confuse_nothing(tmp_path: Path) -> None:
    # The kernel leaves these as they are in mountinfo; they end a line for str.splitlines.
    source = tmp_path / "a\x85b\x1cc\u2028d e.raw"
    source.write_bytes(bytes(MIB))
    with mounted(source, tmp_path / "m\x1c\u2028 n") as mnt:
        entries = json.loads(diskfs("mounts", "--json").stdout)
        assert str(mnt) in {entry["mountpoint"] for entry in entries}
