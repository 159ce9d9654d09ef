"""Opens, maps and reads images in a process of its own with little memory, and reports what happened to each.

Usage: python -m tests.hostile.opening_child JOBS, a JSON list of objects with
  name; base: file with the bytes; patches: [[offset, hexadecimal], ...]; size: to cut or extend to, or null;
  reference: file with the bytes of the disk, or null; format: or null; on_disk: whether to open `base` itself;
or, for what is opened as a user opens it (any format, appliances, partition tables), of objects with
  name; location; format: or null; warm_up: whether it is also done before anything is measured.
Prints one JSON object a job, then one with the growth of the process's memory.
"""

import itertools
import json
import os
import random
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import diskfs
import diskfs_formats
from diskfs.disks.opening import OpenedSource, open_source
from diskfs.sources.file import open_file
from diskfs.sources.locate import FolderFiles
from diskfs_formats.driver import DiskImage, NoRelatedFiles
from diskfs_formats.errors import DiskfsError
from diskfs_formats.reading import ENGINE
from diskfs_formats.registry import open_image
from diskfs_formats.source import Buffer, ByteSource, MemorySource
from diskfs_formats.vmdk import VmdkDriver

ADDRESS_SPACE = 1 << 30
MAX_EXTENTS = 2000
READS = 16
READ_SIZE = 8192
MAX_COMPARED = 4 << 20
CANARY = b"not to be read by any image"
"""What stands in files that no image may lead to."""
MAX_DISKS = 4
MAX_FINDINGS = 50

_PACKAGES = (*diskfs.__path__, *diskfs_formats.__path__)


class Watch:
    """Notes the files and sockets that are opened while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "os.listdir" and _is_library(str(arguments[0])):
            return  # a module that is loaded when it is needed
        if event.startswith("socket.") or event in {"subprocess.Popen", "os.system", "os.exec"}:
            self.opened.append(event)
        elif event in {"open", "os.listdir", "os.scandir"} and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            if not _is_library(path):
                self.opened.append(path)


def _is_library(path: str) -> bool:
    """Tell whether a path is Python's own or a module of diskfs: both are loaded when they are first needed."""
    return path.startswith((sys.base_prefix, sys.prefix, *_PACKAGES)) and ".." not in path


class CountingSource:
    """Counts what is read of another source."""

    def __init__(self, source: ByteSource) -> None:
        self.name, self.size = source.name, source.size
        self.reads = self.bytes = 0
        self._source = source

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads += 1
        self.bytes += length
        return self._source.read_at(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self.read_at(offset, length)

    def close(self) -> None:
        self._source.close()


def run(job: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Do one job; an exception that is not a DiskfsError is reported as a crash."""
    path = Path(job["base"])
    reference = Path(job["reference"]).read_bytes() if job["reference"] else None
    inner: ByteSource
    if job["on_disk"]:
        inner = file = open_file(path)
        related: Any = FolderFiles(path.parent, [file])
    else:
        data = bytearray(path.read_bytes())
        for offset, patch in job["patches"]:
            data[offset : offset + len(patch) // 2] = bytes.fromhex(patch)
        if job["size"] is not None:
            del data[job["size"] :]
            data += bytes(job["size"] - len(data))
        inner = MemorySource(bytes(data), "sample.vmdk")
        related = NoRelatedFiles()
    source = CountingSource(inner)
    result: dict[str, Any] = {
        "name": job["name"],
        "error": None,
        "messages": [],
        "wrong": [],
        "failed": [],
        "crash": None,
    }
    watch.opened, watch.on = [], True
    began = time.process_time()
    disk = None
    try:
        disk = open_image(source, related, format_name=job["format"])
    except DiskfsError as error:
        result["error"] = type(error).__name__
        result["messages"].append(str(error))
    except BaseException:  # noqa: BLE001 - whatever it is, it is reported
        result["crash"] = traceback.format_exc()
    result["reads"], result["bytes"] = source.reads, source.bytes
    if disk is not None:
        result["size"] = disk.size
        result["findings"] = [finding.rule for finding in disk.info.findings]
        result["messages"] += [finding.message for finding in disk.info.findings]
        try:
            _look(disk, reference, result)
        except BaseException:  # noqa: BLE001 - whatever it is, it is reported
            result["crash"] = traceback.format_exc()
    if job["check"]:
        try:
            findings = list(itertools.islice(VmdkDriver().check(source, related), 20))
            result["checked"] = [finding.rule for finding in findings]
            result["messages"] += [finding.message for finding in findings]
        except DiskfsError as error:
            result["checked"] = [type(error).__name__]
        except BaseException:  # noqa: BLE001 - whatever it is, it is reported
            result["crash"] = traceback.format_exc()
    result["seconds"] = time.process_time() - began
    watch.on = False
    result["opened"] = watch.opened
    ENGINE.cache.forget(source)
    inner.close()
    return result


def run_location(job: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Open a location as a user does, with every disk, partition table and check of it."""
    result: dict[str, Any] = {"name": job["name"], "error": None, "messages": [], "crash": None, "findings": []}
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts anew
    before = _peak()
    watch.opened, watch.on = [], True
    began = time.process_time()
    opened = None
    try:
        opened = open_source(job["location"], format_name=job["format"])
        _look_at_all(opened, result)
    except DiskfsError as error:
        result["error"] = type(error).__name__
        result["messages"].append(str(error))
    except BaseException:  # noqa: BLE001 - whatever it is, it is reported
        result["crash"] = traceback.format_exc()
    result["seconds"] = time.process_time() - began
    watch.on = False
    result["opened"] = watch.opened
    if opened is not None:
        opened.close()
    result["growth"] = _peak() - before
    return result


def _look_at_all(opened: OpenedSource, result: dict[str, Any]) -> None:
    """Look at each disk and at the appliance; the first disk's error is the result's."""
    findings = [*opened.findings]
    for disk in opened.disks[:MAX_DISKS]:
        findings += disk.findings
        if disk.error is not None:
            result["error"] = result["error"] or type(disk.error).__name__
            result["messages"].append(str(disk.error))
            continue
        findings += disk.image.info.findings
        _look(disk.image, None, result)
        _, noticed = disk.partitions
        findings += noticed
        findings += itertools.islice(disk.check(), MAX_FINDINGS)
    if opened.appliance is not None:
        findings += itertools.islice(opened.appliance.verify(), MAX_FINDINGS)
    result["findings"] = sorted({finding.rule for finding in findings})
    result["messages"] += [finding.message for finding in findings]


def _peak() -> int:
    """Return the kernel's high-water mark of this program; that of getrusage has its parent's in it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def _look(disk: DiskImage, reference: bytes | None, result: dict[str, Any]) -> None:
    """Map and read a disk; note which grains fail and which are wrong."""
    try:
        result["extents"] = sum(1 for _ in itertools.islice(disk.extents(), MAX_EXTENTS))
    except DiskfsError as error:
        result["messages"].append(str(error))
    if not disk.size:
        return
    chance = random.Random(disk.size)
    last = max(disk.size - READ_SIZE, 0)
    offsets = [0, disk.size - 1, last, disk.size // 2, *(chance.randrange(disk.size) for _ in range(READS - 4))]
    for offset in offsets:
        for read in (getattr(disk, "read_if_ready", disk.read_at), disk.read_at):
            length = min(READ_SIZE, disk.size - offset)
            try:
                found = read(offset, length)
            except DiskfsError as error:
                result["messages"].append(str(error))
                result["read_error"] = type(error).__name__
                continue
            assert found is None or len(found) == length
            if found is not None and CANARY in bytes(found):
                result["leaked"] = True
    if reference is None or disk.size > MAX_COMPARED:
        return
    grain = disk.info.unit_size
    for number in range(-(-disk.size // grain)):
        length = min(grain, disk.size - number * grain)
        try:
            data = disk.read_at(number * grain, length)
        except DiskfsError as error:
            result["failed"].append(number)
            result["messages"].append(str(error))
            continue
        if data != reference[number * grain : number * grain + length]:
            result["wrong"].append(number)


def _run_any(job: dict[str, Any], watch: Watch) -> dict[str, Any]:
    return run_location(job, watch) if "location" in job else run(job, watch)


def main() -> None:
    """Do every job."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    watch = Watch()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    # Everything that is imported or grown once does not count.
    for number, job in enumerate(jobs):
        if number == 0 or job.get("warm_up"):
            _run_any(job, watch)
    peak = before = _peak()
    for job in jobs:
        result = _run_any(job, watch)
        if "location" in job:
            print(json.dumps(result))
            continue
        now = _peak()
        result["growth"], peak = now - peak, now
        print(json.dumps(result))
    print(json.dumps({"total_growth": peak - before}))


if __name__ == "__main__":
    main()
