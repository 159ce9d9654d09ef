"""What Linux itself has written is read as it was: fragments, compression, subvolumes, logs left dirty.

The kernel mounts the images here, to make them and as the oracle; diskfs reads them without.
"""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.guest.files import GuestFiles
from diskfs.guest.volumes import volumes
from tests.guest import file_systems as make
from tests.helpers import assert_same_bytes

pytestmark = pytest.mark.root
KIB = 1 << 10


@contextlib.contextmanager
def mounted(image: Path, options: str = "") -> Iterator[Path]:
    """Mount an image for a while; skips where the kernel does not know the file system or mounts nothing."""
    folder = image.with_suffix(".mounted")
    folder.mkdir(exist_ok=True)
    command = ["mount", "-o", f"loop{options and ','}{options}", str(image), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if result.returncode:
        pytest.skip(f"this machine does not mount it: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        make.run("umount", str(folder))


@contextlib.contextmanager
def read(image: Path) -> Iterator[list[GuestFiles]]:
    with open_source(str(image), format_name="raw") as source, volumes(source) as found:
        assert [volume.problem for volume in found] == [""] * len(found)
        yield list(found.files)


def fragmented(path: Path, pieces: int) -> None:
    """Write blocks with holes between them, from the end to the start, so that no two extents are neighbours."""
    with path.open("wb") as file:
        for piece in reversed(range(pieces)):
            os.pwrite(file.fileno(), piece.to_bytes(8, "big") * 512, piece * 8 * KIB)


def test_xfs_with_extents_in_a_tree_and_folders_of_every_form(tmp_path: Path) -> None:
    image = tmp_path / "xfs.img"
    with image.open("wb") as file:
        file.truncate(320 << 20)
    make.run("mkfs.xfs", "-q", "-m", "rmapbt=1,bigtime=1,inobtcount=1", "-i", "nrext64=1,sparse=1", str(image))
    with mounted(image) as folder:
        fragmented(folder / "fragmented", 2000)
        for count in (0, 1, 5, 60, 400, 5000):
            (folder / f"of-{count}").mkdir()
            for number in range(count):
                (folder / f"of-{count}/{'name' * 8}-{number}").touch()
        for number in range(0, 5000, 3):
            (folder / f"of-5000/{'name' * 8}-{number}").unlink()
        (folder / "link").symlink_to("t" * 1000)
        (folder / "allocated").touch()
        make.run("fallocate", "-l", "1M", str(folder / "allocated"))
        expected = (folder / "fragmented").read_bytes()
        names = {path.name: sorted(os.listdir(path)) for path in folder.glob("of-*")}
    with read(image) as [files]:
        assert_same_bytes(files.read("/fragmented", limit=1 << 30), expected)
        assert len(names) == 6
        for name, inside in names.items():
            assert [entry.name for entry in files.entries(f"/{name}")] == inside, name
        link = files.entry("/link", follow=False)
        assert link is not None
        assert link.target == "t" * 1000
        assert files.read("/allocated", limit=1 << 20) == bytes(1 << 20)
        assert files.state == frozenset()


@pytest.mark.skipif(shutil.which("xfs_io") is None, reason="xfs_io is not installed: run scripts/setup")
def test_an_xfs_that_was_not_unmounted_says_so(tmp_path: Path) -> None:
    image = tmp_path / "xfs.img"
    with image.open("wb") as file:
        file.truncate(320 << 20)
    make.run("mkfs.xfs", "-q", str(image))
    with mounted(image) as folder:
        for number in range(100):
            (folder / str(number)).write_text("x")
        make.run("xfs_io", "-x", "-c", "shutdown -f", str(folder))
    with read(image) as [files]:
        assert files.state == {"needs-journal-recovery"}
    with mounted(image):
        pass
    with read(image) as [files]:
        assert files.state == frozenset()
        assert len(files.entries("/")) == 100


@pytest.mark.parametrize("compression", ["zlib", "lzo", "zstd"])
def test_compressed_btrfs(compression: str, tmp_path: Path) -> None:
    chance = random.Random(3)
    image = tmp_path / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    make.run("mkfs.btrfs", "-q", str(image))
    words = [chance.randbytes(chance.randrange(1, 40)) for _ in range(50)]
    text = b"".join(chance.choice(words) for _ in range(60000))
    contents = {
        "text": text,
        "inline": text[:1500],
        "small": text[:5000],
        "runs": b"a" * 300_000 + b"b" * 7,
        "zeroes": bytes(200_000),
        "random": chance.randbytes(150_000),
        "mixed": text[:100_000] + chance.randbytes(90_000) + text[:70_001],
    }
    with mounted(image, f"compress-force={compression}") as folder:
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        with (folder / "changed").open("wb") as file:
            file.write(text[: 256 * KIB])
            file.flush()
            os.fsync(file.fileno())
            os.pwrite(file.fileno(), b"changed" * 3000, 70_000)  # the old extent is used from both its ends
        fragmented(folder / "fragmented", 500)
        contents |= {name: (folder / name).read_bytes() for name in ("changed", "fragmented")}
    with read(image) as [files]:
        for name, data in contents.items():
            assert_same_bytes(files.read(f"/{name}", limit=1 << 23), data)
        source = files.open("/text")
        for offset in (0, 4095, 131071, 131072, 131073, len(text) - 1):
            count = min(5000, len(text) - offset)
            assert_same_bytes(source.read_at(offset, count), text[offset : offset + count])


def test_subvolumes_of_btrfs(tmp_path: Path) -> None:
    """The default subvolume is the root; others that hold a system are volumes of their own."""
    image = tmp_path / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    make.run("mkfs.btrfs", "-q", str(image))
    with mounted(image) as folder:
        for name in ("@", "@home", "old"):
            make.run("btrfs", "subvolume", "create", str(folder / name))
        for name in ("@", "old"):
            (folder / name / "etc").mkdir()
            (folder / name / "etc/os-release").write_text(f"ID={name}\n")
        (folder / "top").write_text("top")
        make.run("btrfs", "subvolume", "snapshot", str(folder / "old"), str(folder / "@/inner"))
    with read(image) as found:
        assert [files.volume for files in found] == ["disk0", "disk0:@", "disk0:old"]
        assert [entry.name for entry in found[0].entries("/")] == ["@", "@home", "old", "top"]
        assert found[0].read("/@/etc/os-release", limit=99) == b"ID=@\n"
        assert found[0].read("/@/inner/etc/os-release", limit=99) == b"ID=old\n"
        assert found[1].read("/etc/os-release", limit=99) == b"ID=@\n"
        assert found[1].entry("/top") is None
        assert found[1].read("/../etc/os-release", limit=99) == b"ID=@\n"
    with mounted(image) as folder:
        make.run("btrfs", "subvolume", "set-default", str(folder / "old"))
    with read(image) as found:
        assert [files.volume for files in found] == ["disk0", "disk0:@"]
        assert found[0].read("/etc/os-release", limit=99) == b"ID=old\n"


def test_ext4_that_was_used(tmp_path: Path) -> None:
    image = tmp_path / "ext4.img"
    with image.open("wb") as file:
        file.truncate(96 << 20)
    make.run("mkfs.ext4", "-q", "-O", "inline_data,metadata_csum_seed", "-I", "512", str(image))
    with mounted(image) as folder:
        fragmented(folder / "fragmented", 1500)
        (folder / "many").mkdir()
        for number in range(3000):
            (folder / f"many/{number}").write_text("x" * (number % 300))
        for number in range(0, 3000, 2):
            (folder / f"many/{number}").unlink()
        expected = (folder / "fragmented").read_bytes()
        names = sorted(os.listdir(folder / "many"))
    with read(image) as [files]:
        assert_same_bytes(files.read("/fragmented", limit=1 << 30), expected)
        assert [entry.name for entry in files.entries("/many")] == names
        for number in (1, 59, 61, 161, 299, 2999):
            assert files.read(f"/many/{number}", limit=300) == b"x" * (number % 300)


@pytest.mark.fuse
@pytest.mark.skipif(shutil.which("ntfs-3g") is None, reason="ntfs-3g is not installed: run scripts/setup")
def test_ntfs_with_folders_and_compressed_files(tmp_path: Path) -> None:
    chance = random.Random(5)
    image, folder = tmp_path / "ntfs.img", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    make.run("mkntfs", "-q", "-Q", "-F", str(image))
    text = b"".join(chance.choice([b"registry ", b"hive ", b"value "]) for _ in range(40000))
    make.run("ntfs-3g", "-o", "compression", str(image), str(folder))
    try:
        (folder / "Windows/System32/config").mkdir(parents=True)
        (folder / "Windows/System32/config/SYSTEM").write_bytes(text[:70000])
        (folder / "packed").mkdir()
        os.setxattr(folder / "packed", "system.ntfs_attrib_be", (0x810).to_bytes(4, "big"))
        (folder / "packed/text").write_bytes(text)
        (folder / "packed/random").write_bytes(chance.randbytes(100_000))
        (folder / "many").mkdir()
        for number in range(1500):
            (folder / f"many/File {number}").write_text(str(number))
        fragmented(folder / "fragmented", 300)
        expected = {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "packed").iterdir()}
        expected["fragmented"] = (folder / "fragmented").read_bytes()
        attributes = os.getxattr(folder / "packed/text", "system.ntfs_attrib_be")
        names = sorted(os.listdir(folder / "many"))
        (folder / "hiberfil.sys").write_bytes(b"HIBR" + bytes(4092))
    finally:
        make.run("umount", str(folder))
    assert int.from_bytes(attributes, "big") & 0x800  # it is compressed
    with read(image) as [files]:
        for path, data in expected.items():
            assert_same_bytes(files.read(f"/{path}", limit=1 << 30), data)
        assert files.read("/WINDOWS/system32/Config/system", limit=70000) == text[:70000]
        assert [entry.name for entry in files.entries("/MANY")] == names
        assert "hibernated" in files.state
