"""A second real S3 server: Ceph's gateway, from Debian, with the smallest cluster that carries it, in memory.

It needs radosgw, ceph-mon, ceph-osd and ceph-common, about 250 MB; nothing but scripts/s3-implementations starts it.
It listens on 127.0.0.1 alone, and starts within half a minute.
"""

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers.weed import ACCESS_KEY, SECRET_KEY, S3Server, _free_ports, _ready

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"
COMMAND_TIMEOUT = 60.0
MEMORY = 2 << 30
"""Bytes that the objects may take."""

_CONFIGURATION = """
[global]
fsid = {cluster}
mon host = {monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind port min = {first_port}
ms bind port max = {last_port}
keyring = {folder}/keyring
run dir = {folder}
crash dir = {folder}
pid file =
admin socket =
log file = {folder}/$name.log
mon data = {folder}/mon
mon data avail warn = 2
mon data avail crit = 1
mon allow pool size one = true
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {memory}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
"""
_RIGHTS = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
}


def is_installed() -> bool:
    """Tell whether all programs are there."""
    return all(shutil.which(program) for program in PROGRAMS)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """Start the gateway with an empty bucket `images`, and end it. `folder` is empty, its path short."""
    port, first_monitor, second_monitor, first_port = _free_ports(4)
    cluster, disk = uuid.uuid4(), uuid.uuid4()
    monitor = f"[v2:127.0.0.1:{first_monitor},v1:127.0.0.1:{second_monitor}]"
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    (folder / "ceph.conf").write_text(
        _CONFIGURATION.format(
            cluster=cluster,
            monitor=monitor,
            first_port=first_port,
            last_port=first_port + 40,
            folder=folder,
            memory=MEMORY,
            port=port,
        )
    )
    keyring, monitors = folder / "keyring", folder / "monmap"
    for number, (name, rights) in enumerate(_RIGHTS.items()):
        caps = [word for who, what in zip(rights[::2], rights[1::2], strict=True) for word in ("--cap", who, what)]
        _run("ceph-authtool", [*(["-C"] if not number else []), str(keyring), "--gen-key", "-n", name, *caps])
    _run("monmaptool", ["--create", "--fsid", str(cluster), "--addv", "a", monitor, str(monitors)])
    common = ["-c", str(folder / "ceph.conf")]
    with contextlib.ExitStack() as stack:
        _run("ceph-mon", [*common, "--mkfs", "-i", "a", "--monmap", str(monitors), "--keyring", str(keyring)])
        stack.enter_context(_daemon("ceph-mon", [*common, "-i", "a", "-f"], folder))
        patient = [*common, "--connect-timeout", "30"]
        _run("ceph", [*patient, "auth", "add", "osd.0", "-i", str(keyring)])
        _run("ceph", [*patient, "osd", "new", str(disk)])
        _run("ceph-osd", [*common, "-i", "0", "--mkfs", "--osd-uuid", str(disk)])
        stack.enter_context(_daemon("ceph-osd", [*common, "-i", "0", "-f"], folder))
        user = ["--uid=tester", "--display-name=tester", f"--access-key={ACCESS_KEY}", f"--secret={SECRET_KEY}"]
        _run("radosgw-admin", [*common, "user", "create", *user])
        gateway = stack.enter_context(_daemon("radosgw", [*common, "-n", "client.admin", "-f"], folder))
        yield _ready(f"http://127.0.0.1:{port}", gateway, folder / "radosgw")


def _run(program: str, words: Sequence[str]) -> None:
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False)
    if done.returncode:
        raise AssertionError(f"{program}: exit status {done.returncode}: {done.stderr[-1000:]}")


@contextlib.contextmanager
def _daemon(program: str, words: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    with (folder / program).open("wb") as log:
        process = subprocess.Popen(
            [program, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env=environment
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
