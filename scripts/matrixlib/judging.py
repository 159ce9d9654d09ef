"""What qemu-img, libyal's tools, our own reader and coreutils say of a disk that was converted."""

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diskfs.cli.main import main
from diskfs.disks.opening import open_source
from scripts.matrixlib.subject import SECTOR, Subject

SECONDS = 900
"""A program that takes longer hangs."""
QEMU_NAMES = {"raw": "raw", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx"}
CHECKED = {"monolithicSparse", "streamOptimized", "dynamic", "fixed"}
"""Variants that qemu-img check knows, of the formats vmdk and vhdx."""
READ_WHOLE = 16 << 30
"""Bytes up to which qemu-img compares all of a disk: it knows no hole in a VHDX, and looks at every grain of a VMDK."""
WINDOW = 4 << 20
"""Bytes around data that are compared of a larger one."""
MOUNTED = 64 << 20
"""Bytes up to which a disk is read through libyal's mount, which is slow."""
MEDIA_SIZE = re.compile(r"Media size\s*:.*?(\d+)(?: bytes|\s*$|\))", re.MULTILINE)


class Wrong(Exception):
    """A judge says that a converted disk is wrong; the message says which, and how."""


def diskfs(*arguments: object) -> tuple[int, str]:
    """Run a command of diskfs in this process; return its exit code and what it said on both streams."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
    return code, said.getvalue().strip()


def judge(subject: Subject, format_name: str, variant: str, target: Path) -> str:
    """Return which judges find the target good; raise Wrong if one does not."""
    assert subject.raw is not None
    judges = [_own_reader(subject, target)]
    sector_size = subject.sector_size if format_name == "vhdx" else SECTOR
    size = subject.size if format_name == "raw" else subject.size + -subject.size % sector_size
    if (format_name, subject.sector_size) == ("vhdx", 4096):
        # QEMU opens no VHDX of 4096-byte sectors.
        judges += _libyal("vhdiinfo", "vhdimount", target, subject, size)
        return ", ".join(judges)
    padded = _padded(subject.raw)
    judges.append(_qemu_compare(target, QEMU_NAMES[format_name], padded, size))
    if format_name in ("vmdk", "vhdx") and variant in CHECKED:
        _said("qemu-img", "check", "-q", "-f", QEMU_NAMES[format_name], target)
        judges.append("check")
    if format_name == "vhdx" and size > READ_WHOLE:
        judges += _libyal("vhdiinfo", "vhdimount", target, subject, size)
    return ", ".join(judges)


def judge_appliance(subjects: list[Subject], target: Path, folder: Path) -> str:
    """Judge an appliance: its manifest with sha256sum, each disk as `judge` does; unpacks it into an empty folder."""
    names = _said("tar", "tf", target).splitlines()
    if not names[0].endswith(".ovf") or not names[1].endswith(".mf"):
        raise Wrong(f"tar: its members begin with {names[:2]}")
    _said("tar", "xf", target, "-C", folder)
    lines = (folder / names[1]).read_text().splitlines()
    listed = [re.fullmatch(r"SHA256\((.+)\)= ([0-9a-f]{64})", line) for line in lines]
    if not all(listed) or [found[1] for found in listed if found] != [names[0], *names[2:]]:
        raise Wrong(f"manifest: {lines}")
    sums = "".join(f"{found[2]}  {found[1]}\n" for found in listed if found)
    _said("sha256sum", "--check", "--quiet", "--strict", "-", cwd=folder, given=sums)
    with open_source(str(target)) as opened:
        disks = [disk.file_name for disk in opened.disks]
    if len(disks) != len(subjects) or not set(disks) <= set(names):
        raise Wrong(f"it has the disks {disks}, expected {len(subjects)} of its members {names}")
    judges = []
    for number, (name, subject) in enumerate(zip(disks, subjects, strict=True)):
        judges.append(judge(subject, "vmdk", "streamOptimized", folder / name))
        (folder / name).unlink()
        _compare(subject, "--disk-b", number, target)
    return f"sha256sum, {judges[0]}"


def _own_reader(subject: Subject, target: Path) -> str:
    # The content first: what the source reads as is what is recorded of it only there.
    options = [f"{option}-a" if option.startswith("--") else option for option in subject.options]
    format_b = ["--format-b", "raw"] if target.suffix == ".raw" else []
    code, said = diskfs("compare", "--quiet", *options, *format_b, subject.source, target)
    if code or said:
        raise Wrong(f"diskfs compare with the source: {said or code}")
    _compare(subject, *format_b, target)
    return "diskfs"


def _compare(subject: Subject, *target: object) -> None:
    code, said = diskfs("compare", "--quiet", "--format-a", "raw", subject.raw, *target)
    if code or said:
        raise Wrong(f"diskfs compare with the raw content: {said or code}")


def _padded(raw: Path) -> Path:
    """Fill up the last sector, as QEMU does with what it reads; return the file."""
    os.truncate(raw, raw.stat().st_size + -raw.stat().st_size % SECTOR)
    return raw


def _qemu_compare(target: Path, format_name: str, raw: Path, size: int) -> str:
    info = json.loads(_said("qemu-img", "info", "--output=json", "-f", format_name, target))
    shown = size + -size % SECTOR
    if info["virtual-size"] != shown:
        raise Wrong(f"qemu-img info: {info['virtual-size']} bytes, expected {shown}")
    if format_name == "raw" and target.stat().st_size != size:
        raise Wrong(f"it has {target.stat().st_size} bytes, expected {size}")
    if format_name == "raw" or size <= READ_WHOLE:
        _said("qemu-img", "compare", "-f", format_name, "-F", "raw", target, raw, expected="Images are identical.")
        return "qemu-img"
    for offset, length in _windows(raw, shown):
        one, other = (_window(file, name, offset, length) for file, name in ((target, format_name), (raw, "raw")))
        _said("qemu-img", "compare", one, other, expected="Images are identical.")
    return "qemu-img around data"


def _windows(raw: Path, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges around everything that a file has as data."""
    at = 0
    with raw.open("rb") as file:
        while True:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            begin = max(at, data - WINDOW)
            at = min(size, end + WINDOW)
            yield begin, at - begin


def _window(file: Path, format_name: str, offset: int, length: int) -> str:
    node: dict[str, Any] = {"driver": "file", "filename": str(file)}
    if format_name != "raw":
        node = {"driver": format_name, "file": node}
    return "json:" + json.dumps({"driver": "raw", "offset": offset, "size": length, "file": node})


def _libyal(info: str, mounting: str, target: Path, subject: Subject, size: int) -> list[str]:
    found = MEDIA_SIZE.search(_said(info, target))
    if not found or int(found[1]) != size:
        raise Wrong(f"{info}: {found and found[1]} bytes, expected {size}")
    if size > MOUNTED:
        return [f"{info}, size"]
    assert subject.raw is not None
    with subject.raw.open("rb") as file:
        wanted = hashlib.file_digest(file, "sha256").hexdigest()
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        _said(mounting, target, folder)
        try:
            with (Path(folder) / f"{mounting.removesuffix('mount')}1").open("rb", buffering=0) as file:
                given = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Wrong(f"{mounting}: {error.strerror}") from error
        finally:
            _unmount(folder)
    if given != wanted:
        raise Wrong(f"{mounting}: content {given}, expected {wanted}")
    return [mounting]


def _unmount(folder: str) -> None:
    # It is still busy for a moment after it was read.
    for _ in range(20):
        if subprocess.run(["fusermount3", "-u", folder], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["fusermount3", "-u", "-z", folder], check=True)


def _said(*command: object, expected: str = "", cwd: Path | None = None, given: str = "") -> str:
    """Return what a program prints; raise Wrong if it fails, or prints something other than `expected`."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=cwd, input=given
    )  # fmt: skip
    said = f"{result.stdout}\n{result.stderr}".strip()
    if result.returncode or (expected and said != expected):
        raise Wrong(f"{words[0]} {words[1] if words[0] == 'qemu-img' else ''}: {' '.join(said.split())}")
    return result.stdout
