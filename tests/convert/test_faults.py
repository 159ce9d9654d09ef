"""Whatever goes wrong, the target is absent or the old one, one line says what happened, and nothing stays behind."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from diskfs.convert.job import Job, convert_disk
from diskfs.disks.opening import open_source
from diskfs.sinks import system_calls
from diskfs_formats.errors import CorruptImage
from diskfs_formats.source import Buffer
from diskfs_formats.writer import WriteOptions, no_progress
from scripts.soaklib.conversion import Conversion
from scripts.soaklib.faults import FAULTS, fault_points
from tests.convert.commands import KIB, MIB, diskfs, make_raw, partial_files
from tests.fuse.mounting import environment, mounted, run, sha256
from tests.helpers import assert_same_bytes

FORMATS = ["raw", "vmdk", "vhd", "vhdx", "ova"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "disk.raw")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A disk of 64 MiB that does not compress."""
    path = tmp_path / "noise.raw"
    path.write_bytes(random.Random(5).randbytes(64 * MIB))
    return path


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "none", folder)
    try:
        yield folder
    finally:
        run("umount", folder)


@pytest.mark.root
@pytest.mark.parametrize("format_name", FORMATS)
def test_a_full_file_system_is_said_in_one_line_and_the_old_target_stays(
    format_name: str, noise: Path, small_folder: Path
) -> None:
    old = small_folder / f"out.{format_name}"
    old.write_bytes(b"old")
    said = diskfs("convert", noise, old, "--force", code=1).stderr
    assert "No space left" in said
    assert "make room" in said
    assert os.listdir(small_folder) == [old.name]
    assert old.read_bytes() == b"old"
    diskfs("convert", noise, small_folder / f"new.{format_name}", code=1)
    assert os.listdir(small_folder) == [old.name]


def test_a_write_that_the_system_refuses_leaves_nothing(noise: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "diskfs", "convert", str(noise), str(folder / "out.vmdk")]
    result = subprocess.run(command, env=environment(), preexec_fn=limit, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "File too large" in result.stderr
    assert not os.listdir(folder)


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.parametrize(("fault", "format_name"), list(zip(FAULTS, ["vhdx", "vmdk", "ova", "vhd"], strict=True)))
def test_a_fault_at_any_point_leaves_the_target_as_it_was(fault: str, format_name: str, tmp_path: Path) -> None:
    # A short tier of scripts/soak-convert.
    source = tmp_path / "source.raw"
    source.write_bytes(random.Random(8).randbytes(2 * MIB))
    program = [sys.executable, "-m", "diskfs"]
    conversion = Conversion(program, source, tmp_path / f"disk.{format_name}", environment=environment())
    tally = fault_points(fault, conversion, 2, random.Random(fault))
    assert not tally.wrong
    assert tally.outcomes == {"absent": 1, "old": 1}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A stream-optimized disk of noise with one byte changed in a grain near its end."""
    source, image = tmp_path / "source.raw", tmp_path / "damaged.vmdk"
    source.write_bytes(random.Random(6).randbytes(8 * MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", source, image)
    with image.open("r+b") as file:
        file.seek(-700 * KIB, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    return image


@pytest.mark.parametrize("format_name", FORMATS)
def test_damage_in_the_source_is_named_and_nothing_is_written(format_name: str, damaged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    said = diskfs("convert", damaged, folder / f"out.{format_name}", code=1).stderr
    assert "damaged.vmdk: grain " in said
    assert not os.listdir(folder)


@pytest.mark.fuse
@pytest.mark.parametrize("format_name", FORMATS)
def test_a_source_that_cannot_be_read_is_named_and_nothing_is_written(
    format_name: str, damaged: Path, tmp_path: Path
) -> None:
    # The mount answers reads of the damaged grain with EIO: a medium error as programs meet it.
    folder = tmp_path / "out"
    folder.mkdir()
    with mounted(damaged, tmp_path / "mnt") as mountpoint:
        said = diskfs("convert", mountpoint / "disk0.raw", folder / f"out.{format_name}", code=1).stderr
    assert "Input/output error" in said
    assert "disk0.raw: reading" in said
    assert not os.listdir(folder)


def test_a_source_that_changes_meanwhile_is_an_error(noise: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "diskfs", "convert", str(noise), "-", "-O", "raw"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    os.utime(noise)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.count(b"\n") == 1
    assert b"was changed since it was opened" in said


def test_a_reader_that_closes_the_pipe_is_said_in_one_line(noise: Path) -> None:
    command = [sys.executable, "-m", "diskfs", "convert", str(noise), "-", "-O", "raw"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1000)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert said.count(b"\n") == 1
    assert b"standard output: whoever read it has closed it" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_at_any_time_the_target_is_the_old_one_or_the_new_one(
    number: int, noise: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "out.vmdk"
    begin = time.monotonic()
    diskfs("convert", noise, target, "--reproducible")
    took = time.monotonic() - begin
    new = sha256(target)
    chance = random.Random(number)
    for round_number in range(8):
        old = b"old %d" % round_number if round_number % 2 else None
        target.unlink(missing_ok=True)
        if old is not None:
            target.write_bytes(old)
        command = [sys.executable, "-m", "diskfs", "convert", str(noise), str(target), "--reproducible", "--force"]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(chance.uniform(0.05, took))
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        if process.returncode == 0:
            assert sha256(target) == new
            continue
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            # Python itself says that it was interrupted while it starts, before the command can.
            assert process.returncode in (130, -number)
            # So it does of a module that it was reading, because these tests have it show unclosed files.
            assert said == b"" or process.returncode == -number or b"KeyboardInterrupt" in said or b".pyc" in said
            assert not partial_files(folder)
        if target.exists():
            assert (old is not None and target.read_bytes() == old) or sha256(target) == new
        else:
            assert old is None
    diskfs("convert", noise, folder / "other.raw")
    assert not partial_files(folder), "the next run removes what killed ones left"


def test_the_temporary_file_of_a_living_run_is_left_alone(noise: Path, raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    stale = folder / ".gone.vmdk.0123456789abcdef.diskfs-part"
    stale.write_bytes(b"stale")
    unrelated = folder / ".gone.diskfs-part"
    unrelated.write_bytes(b"somebody's")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # A run that cannot go on, because its standard error is full, would be hard to make: this one is stopped.
    command = [sys.executable, "-m", "diskfs", "convert", str(noise), str(folder / "slow.vmdk"), "--level", "12"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while len(partial_files(folder)) != 2 or stale.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        living = [name for name in partial_files(folder) if "slow" in name]
        assert len(living) == 1
        diskfs("convert", raw, folder / "quick.raw")
        assert living[0] in os.listdir(folder)
        assert unrelated.exists()
        process.send_signal(signal.SIGCONT)
        assert process.wait(120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
    assert partial_files(folder) == [unrelated.name]


def test_a_target_that_appears_meanwhile_is_not_replaced(noise: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.vmdk"
    command = [sys.executable, "-m", "diskfs", "convert", str(noise), str(target)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not partial_files(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    target.write_bytes(b"somebody was quicker")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "exists already" in said
    assert target.read_bytes() == b"somebody was quicker"
    assert not partial_files(tmp_path)


@pytest.mark.parametrize(
    ("image", "offset", "said"),
    [
        ("vhdx dynamic", 0x10000, "header at offset 0x10000"),
        ("vhdx dynamic", 0x30000, "region table at offset 0x30000"),
    ],
)
def test_verify_finds_damage_that_a_second_copy_makes_up_for(
    image: str, offset: int, said: str, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, buffers: Sequence[Buffer], start: int) -> int:
        data = bytearray(b"".join(buffers))
        if start <= offset < start + len(data):
            data[offset - start] ^= 0x55
        return os.pwrite(descriptor, data, start)

    monkeypatch.setattr(system_calls, "write", write)
    format_name, variant = image.split()
    target = raw.with_name(f"out.{format_name}")
    job = Job(str(target), format_name, WriteOptions(variant=variant, file_name=target.name), verify=True)
    with open_source(str(raw)) as opened, pytest.raises(CorruptImage, match=f"not sound.*{said}"):
        convert_disk(opened.disk(0).image, job, lambda _title, _total: contextlib.nullcontext(no_progress))
    assert not target.exists()
    assert not partial_files(raw.parent)


@contextlib.contextmanager
def loop_device(path: Path, size: int) -> Iterator[Path]:
    """A block device of `size` bytes full of 0xAA."""
    path.write_bytes(b"\xaa" * size)
    device = Path(run("losetup", "--find", "--show", path).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@pytest.mark.root
@pytest.mark.parametrize("form", ["raw", "streamOptimized"])
def test_a_block_device_is_written_in_place_zeroes_included(form: str, raw: Path, tmp_path: Path) -> None:
    source = raw
    if form != "raw":
        source = tmp_path / "disk.vmdk"
        run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}", raw, source)
    content = raw.read_bytes()
    with loop_device(tmp_path / "backing", 24 * MIB) as device:
        assert "--force" in diskfs("convert", source, device, "-O", "raw", code=1).stderr
        diskfs("convert", source, device, "-O", "raw", "--force", "--verify")
        written = device.read_bytes()
    assert_same_bytes(written[: len(content)], content)
    assert written[len(content) :].strip(b"\xaa") == b"", "what lies behind the image stays"


@pytest.mark.root
def test_a_block_device_that_is_too_small_or_in_use_is_not_touched(raw: Path, tmp_path: Path) -> None:
    with loop_device(tmp_path / "backing", 20 * MIB) as device:
        said = diskfs("convert", raw, device, "-O", "raw", "--force", code=1).stderr
        assert "the image needs 20974080 bytes, the device has 20971520" in said
        assert device.read_bytes().strip(b"\xaa") == b""
        run("mkfs.ext4", "-q", device)
        (tmp_path / "mnt").mkdir()
        run("mount", device, tmp_path / "mnt")
        try:
            assert "in use" in diskfs("convert", raw, device, "-O", "raw", "--force", code=1).stderr
        finally:
            run("umount", tmp_path / "mnt")


@pytest.mark.root
def test_a_device_whose_backing_file_is_being_read_is_not_touched(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    with loop_device(backing, 1 * MIB) as device:
        for source, target in ((backing, device), (device, backing)):
            said = diskfs("convert", source, target, "-O", "raw", "--force", code=1).stderr
            assert f"shares its bytes with {source}, which is being read" in said
    assert backing.read_bytes() == b"\xaa" * MIB


@pytest.mark.root
def test_a_device_that_fails_is_said_in_one_line(noise: Path, small_folder: Path) -> None:
    backing = small_folder / "backing"
    backing.touch()
    os.truncate(backing, 64 * MIB)
    device = Path(run("losetup", "--find", "--show", backing).strip())
    try:
        said = diskfs("convert", noise, device, "-O", "raw", "--force", code=1).stderr
    finally:
        run("losetup", "--detach", device)
    assert "Input/output error" in said or "No space left" in said


@pytest.mark.parametrize("where", ["missing/out.raw", ".", "file/out.raw"])
def test_a_place_that_cannot_be_written_is_said_in_one_line(where: str, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    said = diskfs("convert", raw, tmp_path / where, "-O", "raw", "--force", code=1).stderr
    assert said.startswith("diskfs: ")
