"""What a conversion writes, and what the command says."""

import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from diskfs.convert.job import Job, convert_disk
from diskfs_formats.registry import WRITERS
from diskfs_formats.writer import Progress, WriteOptions, no_progress
from tests.convert.commands import KIB, MIB, diskfs, make_raw, partial_files
from tests.fuse.mounting import ROOT, environment, run, sha256
from tests.helpers import assert_same_bytes
from tests.samples.vhdx_builder import VhdxBuilder, pattern
from tests.samples.writing import DISKS, files_of

VARIANTS = [(entry.name, variant) for entry in WRITERS for variant in entry.variants]
QEMU_NAMES = {"raw": "raw", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "disk.raw")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", sorted(DISKS))
@pytest.mark.parametrize(("format_name", "variant"), VARIANTS)
def test_every_disk_as_every_variant_is_what_qemu_reads(
    kind: str, format_name: str, variant: str, tmp_path: Path
) -> None:
    found = DISKS[kind](tmp_path)
    target = tmp_path / "out" / "disk.out"
    target.parent.mkdir()
    try:
        job = Job(str(target), format_name, WriteOptions(variant=variant, file_name=target.name), verify=True)
        summary = convert_disk(found.disk, job, no_phase)
    finally:
        found.disk.close()
    assert summary.read + summary.skipped == found.disk.size
    assert not partial_files(target.parent)
    if found.disk.size == 1 << 40 or (format_name, found.disk.info.sector_size) == ("vhdx", 4096):
        # qemu-img reads all of 1 TiB, and no VHDX of 4096-byte sectors; --verify has read both back by our reader.
        return
    command = ["qemu-img", "compare", "-q", "-f", QEMU_NAMES[format_name], "-F", "raw", target, found.raw]
    if found.disk.size % 512:
        # qemu rounds raw files of odd sizes up; what is compared is zero there.
        run("truncate", "-s", str(-(-found.disk.size // 512) * 512), found.raw)
        if format_name == "raw":
            run("truncate", "-s", str(-(-found.disk.size // 512) * 512), target)
    run(*command)
    if format_name in ("vhdx", "vmdk") and variant != "monolithicFlat":
        run("qemu-img", "check", "-q", "-f", QEMU_NAMES[format_name], target)


@contextlib.contextmanager
def no_phase(_title: str, _total: int) -> Iterator[Progress]:
    yield no_progress


@pytest.mark.parametrize("form", ["streamOptimized", "monolithicSparse", "monolithicFlat"])
def test_a_vmdk_by_qemu_becomes_the_raw_disk_that_it_was_made_of(form: str, raw: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "disk.vmdk", tmp_path / "out.raw"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}", raw, image)
    diskfs("convert", image, out, "--verify")
    assert_same_bytes(out.read_bytes(), raw.read_bytes())


def test_zero_blocks_inside_data_become_holes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    diskfs("convert", raw, out)
    assert_same_bytes(out.read_bytes(), raw.read_bytes())
    assert out.stat().st_blocks * 512 <= (300 - 32 + 64 + 4 + 8) * KIB


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_pipe_gets_every_byte_in_order(target: str, threads: str, raw: Path) -> None:
    command = [sys.executable, "-m", "diskfs", "convert", str(raw), target, "-O", "raw", "--threads", threads]
    if target != "-":
        command.append("--quiet")
    result = subprocess.run(command, env=environment(), capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert_same_bytes(result.stdout, raw.read_bytes())


def test_a_pipe_that_does_not_block_gets_every_byte(raw: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    command = [sys.executable, "-m", "diskfs", "convert", str(raw), "-", "-O", "raw"]
    with subprocess.Popen(command, env=environment(), stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        time.sleep(0.5)
        with open(reading, "rb") as file:
            content = file.read()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 0)
    assert_same_bytes(content, raw.read_bytes())


@pytest.mark.parametrize("arguments", ["convert {} - -O raw", "cat {}"])
def test_an_output_that_is_closed_is_no_success(arguments: str, raw: Path) -> None:
    command = f"{sys.executable} -m diskfs {arguments.format(raw)} >&-"
    result = subprocess.run(command, shell=True, env=environment(), stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("diskfs: standard output is closed; redirect it to a file or a pipe\n")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("format_name", ["raw", "ova"])
def test_a_fifo_that_is_to_be_verified_is_refused_before_anybody_reads_it(
    format_name: str, raw: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    said = diskfs("convert", raw, tmp_path / "fifo", "-O", format_name, "--verify", code=1).stderr
    assert "fifo: what went into a pipe cannot be read back" in said


def test_a_reproducible_stream_is_the_same_in_a_pipe_and_in_a_file(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "disk.vmdk"
    diskfs("convert", raw, out, "--reproducible")
    command = [sys.executable, "-m", "diskfs", "convert", str(raw), "-", "-O", "vmdk", "--reproducible"]
    piped = subprocess.run(command, env=environment(), capture_output=True, check=True).stdout
    assert_same_bytes(piped, out.read_bytes())


@pytest.mark.parametrize(("format_name", "variant"), [pair for pair in VARIANTS if pair[1] != "streamOptimized"])
def test_the_file_is_the_layout_byte_for_byte(format_name: str, variant: str, tmp_path: Path) -> None:
    found = DISKS["shuffled vmdk"](tmp_path)
    name = f"out.{format_name}"
    laid_out = files_of(found.disk, format_name, variant, name, reproducible=True)
    diskfs("convert", tmp_path / "disk.image", tmp_path / name, "--variant", variant, "--reproducible")
    for file in laid_out:
        assert_same_bytes((tmp_path / file.name).read_bytes(), file.content.read_at(0, file.content.size))
    found.disk.close()


def test_the_summary_in_json_follows_its_schema_and_adds_up(raw: Path, tmp_path: Path) -> None:
    result = diskfs("convert", raw, tmp_path / "out.vmdk", "--json", "--verify")
    summary = json.loads(result.stdout)
    schema = json.loads((ROOT / "docs/schemas/convert.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(summary, schema)
    assert (summary["format"], summary["variant"], summary["verified"]) == ("vmdk", "streamOptimized", True)
    assert summary["virtual_size"] == summary["bytes_read"] + summary["bytes_skipped"] == 20 * MIB + 2560
    assert summary["file_size"] == (tmp_path / "out.vmdk").stat().st_size
    assert summary["ratio"] == pytest.approx(summary["bytes_written"] / summary["bytes_read"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out.bin"], "say it with -O"),
        (["out"], "say it with -O"),
        (["out.vhd", "--variant", "streamOptimized"], "dynamic, fixed"),
        (["out.raw", "--level", "3"], "--level is for"),
        (["out.vmdk", "--level", "13"], "1 to 12"),
        (["out.vmdk", "--threads", "0"], "1 to"),
        (["out.vmdk", "--azure"], "--azure is for vhd"),
        (["-", "-O", "raw", "--verify"], "cannot read back"),
        (["-", "-O", "raw", "--json"], "cannot both"),
    ],
)
def test_options_that_make_no_sense_are_a_usage_error(arguments: list[str], said: str, tmp_path: Path) -> None:
    target = arguments[0] if arguments[0] == "-" else tmp_path / arguments[0]
    assert said in diskfs("convert", tmp_path / "missing.raw", target, *arguments[1:], code=2).stderr
    assert not os.listdir(tmp_path)


def test_an_existing_target_is_kept_without_force_and_replaced_with_it(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    out.write_bytes(b"old")
    os.chmod(out, 0o640)
    assert "--force" in diskfs("convert", raw, out, code=1).stderr
    assert out.read_bytes() == b"old"
    diskfs("convert", raw, out, "--force")
    assert_same_bytes(out.read_bytes(), raw.read_bytes())
    assert out.stat().st_mode & 0o777 == 0o640
    assert not partial_files(tmp_path)


def test_a_new_file_has_the_permissions_that_the_umask_leaves(raw: Path, tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        diskfs("convert", raw, tmp_path / "out.raw")
    finally:
        os.umask(previous)
    assert (tmp_path / "out.raw").stat().st_mode & 0o777 == 0o640


def test_a_target_that_is_a_link_stays_one(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/real.raw").write_bytes(b"old")
    (tmp_path / "link.raw").symlink_to("elsewhere/real.raw")
    diskfs("convert", raw, tmp_path / "link.raw", "--force")
    assert (tmp_path / "link.raw").is_symlink()
    assert_same_bytes((tmp_path / "elsewhere/real.raw").read_bytes(), raw.read_bytes())
    (tmp_path / "dangling.raw").symlink_to("nowhere")
    assert "leads nowhere" in diskfs("convert", raw, tmp_path / "dangling.raw", "--force", code=1).stderr


def test_no_file_that_is_being_read_is_written_by_whatever_name(raw: Path, tmp_path: Path) -> None:
    base, child, flat = tmp_path / "base.qcow2", tmp_path / "child.qcow2", tmp_path / "flat.vmdk"
    run("qemu-img", "convert", "-O", "qcow2", raw, base)
    run("qemu-img", "create", "-f", "qcow2", "-b", base.name, "-F", "qcow2", child)
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, flat)
    (tmp_path / "link.raw").symlink_to(child.name)
    os.link(base, tmp_path / "hard.raw")
    before = {path: sha256(path) for path in (base, child, flat, tmp_path / "flat-flat.vmdk", raw)}
    for source, target in (
        (raw, raw), (child, child), (child, base), (child, tmp_path / "link.raw"), (child, tmp_path / "hard.raw"),
        (flat, tmp_path / "flat-flat.vmdk"),
    ):  # fmt: skip
        assert "being read" in diskfs("convert", source, target, "-O", "raw", "--force", code=1).stderr
    # Also where it is not the target itself, but a file beside it.
    said = diskfs("convert", flat, tmp_path / "flat.vmdk", "--variant", "monolithicFlat", "--force", code=1).stderr
    assert "being read" in said
    assert before == {path: sha256(path) for path in before}


def test_a_second_file_that_is_in_the_way_leaves_the_first_as_it_was(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out-flat.vmdk").write_bytes(b"in the way")
    diskfs("convert", raw, tmp_path / "out.vmdk", "--variant", "monolithicFlat", code=1)
    assert not (tmp_path / "out.vmdk").exists()
    assert (tmp_path / "out-flat.vmdk").read_bytes() == b"in the way"
    assert not partial_files(tmp_path)


def test_several_files_do_not_go_into_a_pipe(raw: Path) -> None:
    said = diskfs("convert", raw, "-", "-O", "vmdk", "--variant", "monolithicFlat", code=1).stderr
    assert "several files" in said


def test_a_partition_is_converted_alone(corpus: Path, tmp_path: Path) -> None:
    appliance = corpus / "appliances/two-disks.ova"
    diskfs("convert", appliance, tmp_path / "part.raw", "--disk", 0, "--partition", 2)
    with (tmp_path / "expected.raw").open("wb") as file:
        command = [sys.executable, "-m", "diskfs", "cat", str(appliance), "--disk", "0", "--partition", "2"]
        subprocess.run(command, env=environment(), stdout=file, check=True)
    assert sha256(tmp_path / "part.raw") == sha256(tmp_path / "expected.raw")


def test_azure_gets_a_whole_number_of_mebibytes(raw: Path, tmp_path: Path) -> None:
    diskfs("convert", raw, tmp_path / "out.vhd", "--variant", "fixed", "--azure")
    assert (tmp_path / "out.vhd").stat().st_size == 21 * MIB + 512


def test_no_progress_is_shown_to_a_pipe(raw: Path, tmp_path: Path) -> None:
    assert diskfs("convert", raw, tmp_path / "out.raw").stderr == ""


@pytest.mark.parametrize(("arguments", "is_shown"), [((), True), (("--quiet",), False)])
def test_progress_is_shown_on_a_terminal_unless_quiet_and_has_no_colour(
    arguments: tuple[str, ...], is_shown: bool, raw: Path, tmp_path: Path
) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        command = [sys.executable, "-m", "diskfs", "convert", str(raw), str(tmp_path / "out.vmdk"), *arguments]
        subprocess.run(command, env={**environment(), "NO_COLOR": "1"}, stderr=slave, check=True, capture_output=False,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        os.set_blocking(master, False)
        try:
            shown = os.read(master, 65536).decode()
        except BlockingIOError:
            shown = ""
    finally:
        os.close(master)
        os.close(slave)
    assert ("writing" in shown) == is_shown
    assert not re.search(r"\x1b\[[0-9;]*m", shown)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_pipe_is_full_ends_it_with_130(number: int, raw: Path) -> None:
    command = [sys.executable, "-m", "diskfs", "convert", str(raw), "-", "-O", "raw"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, b"")


def test_sectors_that_a_vhd_cannot_state_are_warned_of(tmp_path: Path) -> None:
    source, out = tmp_path / "disk.vhdx", tmp_path / "out.vhd"
    builder = VhdxBuilder(4 * MIB, sector_size=4096)
    builder.put(1, pattern(1))
    source.write_bytes(builder.build())
    said = diskfs("convert", source, out).stderr
    assert said.startswith("diskfs: warning: ")
    assert "its sectors have 4096 bytes, which a VHD cannot say" in said
    assert said.count("\n") == 1
    diskfs("compare", "--strict", source, out)
    assert diskfs("convert", "--quiet", "--force", source, out).stderr == ""
    for name in ("out.vhdx", "out.vmdk", "flat.vmdk"):
        variant = ["--variant", "monolithicFlat"] if name == "flat.vmdk" else []
        assert diskfs("convert", source, tmp_path / name, *variant).stderr == ""
        assert json.loads(diskfs("info", "--json", tmp_path / name).stdout)["disks"][0]["sector_size"] == 4096
    assert diskfs("convert", tmp_path / "out.vhd", tmp_path / "again.vhd").stderr == ""
