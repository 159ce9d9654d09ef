"""The folder of an overlay: whom it lets in, whose it is, and what of it is refused by name."""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import google_crc32c
import pytest

from diskfs.disks.opening import OpenedSource, open_source
from diskfs.disks.overlay import OverlayFolder, SourceOptions
from diskfs.disks.overlay import lock as lock_module
from diskfs.errors import (
    DamagedOverlay,
    NewerOverlay,
    NotAnOverlay,
    OtherSource,
    OverlayInUse,
    OverlayWriteError,
)
from diskfs.sources.locations import RemoteOptions
from diskfs_formats.errors import DiskfsError
from scripts.overlaylib.simulated import SimulatedStorage
from tests.servers.faulty import FaultyServer

SIZE = 3 << 20
HOLDER = """
import sys
from pathlib import Path
from diskfs.disks.opening import open_source
from diskfs.disks.overlay import OverlayFolder
source = open_source(sys.argv[1], format_name="raw")
overlay = OverlayFolder.open(Path(sys.argv[2]), source)
overlay.disk(0).write_at(0, b"by the other")
overlay.flush()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\1" * SIZE)
    return path


@pytest.fixture
def source(image: Path) -> Iterator[OpenedSource]:
    with open_source(str(image), format_name="raw") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, source: OpenedSource) -> Path:
    """A folder with a change of the first bytes."""
    made = tmp_path / "overlay"
    with OverlayFolder.open(made, source) as overlay:
        overlay.disk(0).write_at(0, b"changed")
    return made


def _opens(folder: Path, source: OpenedSource) -> bytes:
    with OverlayFolder.open(folder, source, create=False) as overlay:
        return overlay.disk(0).read_at(0, 7)


def test_an_overlay_keeps_its_changes_and_leaves_the_image_alone(
    folder: Path, image: Path, source: OpenedSource
) -> None:
    before = image.stat()
    assert _opens(folder, source) == b"changed"
    assert image.read_bytes() == b"\1" * SIZE
    assert image.stat() == before
    assert sorted(os.listdir(folder)) == ["disk0.data", "disk0.index", "lock", "overlay.json"]
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, folder / "disk0.data")] == ["0o700", "0o600"]
    assert list(OverlayFolder.check(folder)) == []


def test_a_description_tells_what_is_needed_to_open_the_source_again(tmp_path: Path, image: Path) -> None:
    options = SourceOptions.of(format_name="raw", parents=("base.vmdk",), allow_missing_parent=True)
    with open_source(str(image), format_name="raw") as source:
        OverlayFolder.open(tmp_path / "overlay", source, options=options).close()
    description = OverlayFolder.inspect(tmp_path / "overlay")
    assert description.location == str(image)
    assert description.options.format_name == "raw"
    assert description.options.parents == (str(Path.cwd() / "base.vmdk"),)
    assert description.options.allow_missing_parent
    assert (description.block_size, description.identity.disks[0].virtual_size) == (4096, SIZE)
    assert description.identity.file.inode == image.stat().st_ino


def test_one_of_200_writers_wins_and_all_others_learn_who(tmp_path: Path, source: OpenedSource) -> None:
    barrier = threading.Barrier(20)
    outcomes: list[OverlayFolder | DiskfsError] = []

    def start() -> None:
        barrier.wait()
        for _ in range(10):
            try:
                outcomes.append(OverlayFolder.open(tmp_path / "overlay", source))
            except DiskfsError as error:
                outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, OverlayFolder)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, OverlayInUse)]
    assert (len(outcomes), len(winners), len(refusals)) == (200, 1, 199)
    holder = f"in use by process {os.getpid()} on {socket.gethostname()}; unmount it there"
    assert [str(refusal) for refusal in refusals if holder not in str(refusal)] == []
    winners[0].close()


def test_the_name_of_a_holder_that_is_gone_is_not_given(folder: Path, source: OpenedSource) -> None:
    with OverlayFolder.open(folder, source):
        for left in ("process 4194305 on " + socket.gethostname(), "", "\x1b[31mprocess"):
            (folder / "lock").write_text(left)
            with pytest.raises(OverlayInUse, match="in use by another process; unmount it there"):
                OverlayFolder.open(folder, source)
        (folder / "lock").write_text("process 4194305 on elsewhere")
        with pytest.raises(OverlayInUse, match="in use by process 4194305 on elsewhere; unmount it there"):
            OverlayFolder.open(folder, source)


def test_another_process_is_refused_and_its_end_by_sigkill_frees_the_overlay(
    tmp_path: Path, image: Path, source: OpenedSource
) -> None:
    folder = tmp_path / "overlay"
    command = [sys.executable, "-c", HOLDER, str(image), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        pattern = f"in use by process {process.pid} on {re.escape(socket.gethostname())}"
        for refused in (
            lambda: OverlayFolder.open(folder, source),
            lambda: OverlayFolder.open(folder, source, create=False),
            lambda: OverlayFolder.remove(folder),
            lambda: list(OverlayFolder.check(folder)),
        ):
            with pytest.raises(OverlayInUse, match=pattern):
                refused()
        assert OverlayFolder.inspect(folder).location == str(image)
        process.send_signal(signal.SIGKILL)
    assert _opens(folder, source) == b"by the "


def _forgets(storage: SimulatedStorage, source: OpenedSource) -> bool:
    """Tell whether opening an overlay lets go of what the page cache has of its files; closes it again."""
    seen: list[str] = []
    storage.watcher = lambda kind, _node, _operation: seen.append(kind)
    with OverlayFolder.open(Path("overlay"), source, storage=storage):
        storage.watcher = None
    return "forget" in seen


def test_what_was_closed_well_is_read_from_memory_and_anything_else_from_the_disk(source: OpenedSource) -> None:
    storage = SimulatedStorage()
    assert _forgets(storage, source)  # It is new.
    assert not _forgets(storage, source)
    left = OverlayFolder.open(Path("overlay"), source, storage=storage)
    left.disk(0).write_at(0, b"written by a process that is killed")
    left._lock._file.close()
    assert _forgets(storage, source)
    assert not _forgets(storage, source)
    assert list(OverlayFolder.check(Path("overlay"), storage=storage)) == []
    assert not _forgets(storage, source)


def test_a_folder_that_was_closed_before_the_system_started_is_read_from_the_disk(
    source: OpenedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SimulatedStorage()
    assert _forgets(storage, source)
    assert not _forgets(storage, source)
    started = tmp_path / "boot_id"
    started.write_text("another\n")
    monkeypatch.setattr(lock_module, "_BOOT_ID", started)
    assert _forgets(storage, source)
    assert not _forgets(storage, source)
    started.unlink()
    assert _forgets(storage, source)
    assert _forgets(storage, source)


def test_an_interrupted_sync_is_not_taken_for_one_that_succeeded(source: OpenedSource) -> None:
    def interrupted(kind: str, _node: object, _operation: object) -> None:
        if kind == "sync":
            raise KeyboardInterrupt

    storage = SimulatedStorage()
    assert _forgets(storage, source)
    with OverlayFolder.open(Path("overlay"), source, storage=storage) as overlay:
        disk = overlay.disk(0)
        disk.write_at(0, b"first")
        disk.flush()
        disk.write_at(0, b"other")
        storage.watcher = interrupted
        with pytest.raises(KeyboardInterrupt):
            disk.flush()
        storage.watcher = None
    left = storage.after_power_loss()
    with OverlayFolder.open(Path("overlay"), source, storage=left) as overlay:
        assert overlay.disk(0).read_at(0, 5) == b"other"


def test_a_failed_sync_has_the_next_one_read_from_the_disk_also_where_the_disk_was_closed_before(
    source: OpenedSource,
) -> None:
    def failing(kind: str, _node: object, _operation: object) -> None:
        if kind == "sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    storage = SimulatedStorage()
    assert _forgets(storage, source)
    with OverlayFolder.open(Path("overlay"), source, storage=storage) as overlay:
        disk = overlay.disk(0)
        disk.write_at(0, b"lost")
        storage.watcher = failing
        with pytest.raises(OverlayWriteError, match="syncing the data failed"):
            disk.close()
        storage.watcher = None
    with OverlayFolder.open(Path("overlay"), source, storage=storage) as overlay:
        assert overlay.disk(0).read_at(0, 4) == b"\1" * 4
    assert not _forgets(storage, source)


def _touched(image: Path) -> None:
    os.utime(image, ns=(0, 1))


def _longer(image: Path) -> None:
    status = image.stat()
    with image.open("ab") as file:
        file.write(bytes(512))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copied(image: Path) -> None:
    status = image.stat()
    copy = image.with_suffix(".copy")
    copy.write_bytes(image.read_bytes())
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.rename(image)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_touched, r"its time of modification is 1, expected \d+"),
        (_longer, f"its size is {SIZE + 512}, expected {SIZE}"),
        (_copied, r"its inode number is \d+, expected \d+"),
    ],
)
def test_a_source_that_was_changed_is_refused(
    folder: Path, image: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(image)
    with open_source(str(image), format_name="raw") as source:
        with pytest.raises(
            OtherSource, match=f"overlay: the overlay was made for .*disk.raw.* changed since: {reason}"
        ):
            OverlayFolder.open(folder, source)


def test_a_source_is_the_same_under_another_name(folder: Path, image: Path) -> None:
    os.link(image, image.with_name("other.raw"))
    with open_source(str(image.with_name("other.raw")), format_name="raw") as source:
        assert _opens(folder, source) == b"changed"


def test_the_format_is_decided_once(tmp_path: Path) -> None:
    """What a guest writes must not make its raw disk an image of another format."""
    path = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(path), "3M"], check=True)
    with open_source(str(path), format_name="raw") as source:
        OverlayFolder.open(tmp_path / "overlay", source).close()
    with open_source(str(path)) as source:
        with pytest.raises(OtherSource, match="its format is vmdk, expected raw"):
            OverlayFolder.open(tmp_path / "overlay", source)


def test_the_content_identifier_and_the_parent_of_a_delta_count(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(base), "3M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "base.vmdk", str(child)], check=True)
    with open_source(str(child)) as source:
        OverlayFolder.open(tmp_path / "overlay", source).close()
    identity = OverlayFolder.inspect(tmp_path / "overlay").identity.disks[0]
    assert [text[:4] for text in identity.content_ids] == ["CID ", "CID "]
    assert [file.name for file in identity.files] == ["base.vmdk"]
    os.utime(base, ns=(0, 5))
    with open_source(str(child)) as source:
        with pytest.raises(OtherSource, match=r"base\.vmdk: its time of modification is 5"):
            OverlayFolder.open(tmp_path / "overlay", source)


def test_a_disk_that_cannot_be_opened_hides_no_other_and_keeps_its_error(tmp_path: Path, image: Path) -> None:
    with open_source(str(image), format_name="raw") as source:
        with OverlayFolder.open(tmp_path / "overlay", source) as overlay:
            with pytest.raises(DiskfsError, match="there is no disk 1"):
                overlay.disk(1)


def test_a_url_is_stored_without_what_is_secret_and_its_version_counts(tmp_path: Path) -> None:
    secrets = ("canary-user", "canary-word", "canary-signature")
    with FaultyServer() as web:
        url = web.put("disk.raw", b"\2" * SIZE)
        signed = f"{url}?X-Amz-Signature={secrets[2]}"
        remote = RemoteOptions(allow_private=True, endpoint_url=f"http://{secrets[0]}:{secrets[1]}@127.0.0.1:1/")
        with open_source(signed, format_name="raw", remote=remote) as source:
            options = SourceOptions.of(format_name="raw", remote=remote)
            with OverlayFolder.open(tmp_path / "overlay", source, options=options) as overlay:
                overlay.disk(0).write_at(1, b"x")
        description = OverlayFolder.inspect(tmp_path / "overlay")
        assert description.location == url
        assert description.identity.file.etag == '"v1"'
        assert description.options.remote().endpoint_url == "http://127.0.0.1:1/"
        for path in (tmp_path / "overlay").iterdir():
            assert not any(secret.encode() in path.read_bytes() for secret in secrets)
        with open_source(url, format_name="raw", remote=remote) as source:
            assert _opens(tmp_path / "overlay", source) == b"\2x\2\2\2\2\2"
        web.put("disk.raw", b"\3" * SIZE)
        with open_source(signed, format_name="raw", remote=remote) as source:
            with pytest.raises(OtherSource, match='its ETag is "v2", expected "v1"') as caught:
                OverlayFolder.open(tmp_path / "overlay", source)
        assert not any(secret in str(caught.value) for secret in secrets)


def test_folders_that_hold_something_else_are_refused(tmp_path: Path, source: OpenedSource) -> None:
    folder = tmp_path / "overlay"
    for create in (False,):
        with pytest.raises(NotAnOverlay, match="there is no such folder"):
            OverlayFolder.open(folder, source, create=create)
    folder.mkdir()
    with pytest.raises(NotAnOverlay, match=r"there is no overlay\.json"):
        OverlayFolder.open(folder, source, create=False)
    (folder / "thesis.odt").write_text("precious")
    for refused in (lambda: OverlayFolder.open(folder, source), lambda: OverlayFolder.remove(folder)):
        with pytest.raises(NotAnOverlay):
            refused()
    assert os.listdir(folder) == ["thesis.odt"]
    (folder / "overlay.json").write_text('{"format": "theirs"}')
    for refused in (lambda: OverlayFolder.open(folder, source), lambda: OverlayFolder.remove(folder)):
        with pytest.raises(NotAnOverlay, match="does not say that its format is 'diskfs overlay'"):
            refused()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotAnOverlay, match="it is no folder"):
        OverlayFolder.open(tmp_path / "file", source)


def _rewrite(folder: Path, name: str, change: Callable[[bytearray], None]) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def _flip(offset: int) -> Callable[[bytearray], None]:
    def flip(content: bytearray) -> None:
        content[offset] ^= 0x40

    return flip


def _cut(content: bytearray) -> None:
    del content[-512:]


def _zero_page(content: bytearray) -> None:
    content[4096:4608] = bytes(512)


def _another_page(content: bytearray) -> None:
    content[4096:4608] = content[4608:5120]


def _newer(content: bytearray) -> None:
    content[12:16] = (2).to_bytes(4, "little")


Damage: TypeAlias = tuple[str, Callable[[bytearray], None], type[DiskfsError], str, str | None]
DAMAGE: list[Damage] = [
    ("disk0.index", _flip(100), DamagedOverlay, r"disk0\.index: header at 0x0: CRC-32C", "overlay-index-header"),
    ("disk0.index", _flip(0), NotAnOverlay, "it is no index of an overlay", "overlay-index-header"),
    ("disk0.index", _newer, NewerOverlay, "it has version 2, and this diskfs reads up to 1", "overlay-index-header"),
    ("disk0.index", _flip(4096), DamagedOverlay, "page 0 at 0x1000: it begins with", "overlay-index-page"),
    ("disk0.index", _flip(4200), DamagedOverlay, "page 0 at 0x1000: CRC-32C 0x", "overlay-index-page"),
    ("disk0.index", _zero_page, DamagedOverlay, "page 0 at 0x1000: it is all zeroes", "overlay-index-page"),
    ("disk0.index", _another_page, DamagedOverlay, "page 0 at 0x1000: ", "overlay-index-page"),
    ("disk0.index", _flip(4700), DamagedOverlay, "guard 0 at 0x1200: CRC-32C", "overlay-index-guard"),
    ("disk0.index", _cut, DamagedOverlay, r"disk0\.index: it has 4608 bytes, expected 5120", "overlay-index-size"),
    ("disk0.data", _cut, DamagedOverlay, f"it has {SIZE - 512} bytes, expected {SIZE}", "overlay-data-size"),
    ("overlay.json", _flip(200), DamagedOverlay, r"overlay\.json: ", None),
    ("overlay.json", _cut, DamagedOverlay, r"overlay\.json: it is no JSON", None),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage[3])
def test_damage_is_refused_by_name_and_found_by_the_check(folder: Path, source: OpenedSource, damage: Damage) -> None:
    name, change, kind, text, rule = damage
    _rewrite(folder, name, change)
    with pytest.raises(kind, match=text):
        OverlayFolder.open(folder, source)
    if rule is None:
        with pytest.raises(kind, match=text):
            list(OverlayFolder.check(folder))
    else:
        assert rule in {finding.rule for finding in OverlayFolder.check(folder)}
    OverlayFolder.remove(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "rule"), [("disk0.index", "overlay-index-missing"), ("disk0.data", "overlay-data-missing")]
)
def test_a_missing_file_is_refused_by_name(folder: Path, source: OpenedSource, name: str, rule: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DamagedOverlay, match=f"{name}: it is missing"):
        OverlayFolder.open(folder, source)
    assert [finding.rule for finding in OverlayFolder.check(folder)] == [rule]


def test_a_missing_description_is_refused_where_changes_would_be_lost(folder: Path, source: OpenedSource) -> None:
    (folder / "overlay.json").unlink()
    with pytest.raises(DamagedOverlay, match=r"overlay\.json is missing, and disk0\.index describes changes"):
        OverlayFolder.open(folder, source)


def test_an_unfinished_overlay_is_made_anew(folder: Path, tmp_path: Path, source: OpenedSource) -> None:
    with OverlayFolder.open(tmp_path / "new", source):
        pass
    (tmp_path / "new" / "overlay.json").rename(tmp_path / "new" / "overlay.json.new")
    with OverlayFolder.open(tmp_path / "new", source) as overlay:
        assert overlay.disk(0).read_at(0, 4) == b"\1\1\1\1"
    # And so is one that was being removed.
    (folder / "overlay.json").rename(folder / "overlay.json.removed")
    with OverlayFolder.open(folder, source) as overlay:
        assert overlay.disk(0).read_at(0, 4) == b"\1\1\1\1"
    assert sorted(os.listdir(folder)) == ["disk0.data", "disk0.index", "lock", "overlay.json"]


def test_a_newer_version_is_refused_by_name_whatever_else_it_says(folder: Path, source: OpenedSource) -> None:
    text = json.loads((folder / "overlay.json").read_text())
    (folder / "overlay.json").write_text(json.dumps({"format": text["format"], "version": 2, "new": "words"}))
    for refused in (
        lambda: OverlayFolder.open(folder, source),
        lambda: OverlayFolder.inspect(folder),
        lambda: OverlayFolder.remove(folder),
        lambda: list(OverlayFolder.check(folder)),
    ):
        with pytest.raises(NewerOverlay, match="it has version 2, and this diskfs reads up to 1; use a later one"):
            refused()
    assert (folder / "disk0.data").exists()


def test_files_of_another_overlay_are_refused(folder: Path, tmp_path: Path, source: OpenedSource) -> None:
    with OverlayFolder.open(tmp_path / "other", source) as overlay:
        overlay.disk(0).write_at(0, b"other")
    (folder / "disk0.index").write_bytes((tmp_path / "other" / "disk0.index").read_bytes())
    with pytest.raises(DamagedOverlay, match=r"it is the index of disk 0 of .* overlay"):
        OverlayFolder.open(folder, source)
    assert "overlay-index-foreign" in {finding.rule for finding in OverlayFolder.check(folder)}


def test_every_flipped_bit_of_the_description_is_refused(folder: Path, source: OpenedSource) -> None:
    original = (folder / "overlay.json").read_bytes()
    for offset in range(0, len(original), 3):
        changed = bytearray(original)
        changed[offset] ^= 1 << offset % 7
        (folder / "overlay.json").write_bytes(changed)
        with contextlib.suppress(ValueError):
            # White space, and digits of one value: what is said is the same.
            if json.loads(changed) == json.loads(original):
                continue
        with pytest.raises(DiskfsError):
            OverlayFolder.inspect(folder)


def test_every_flipped_bit_of_the_index_is_refused(folder: Path, source: OpenedSource) -> None:
    original = (folder / "disk0.index").read_bytes()
    offsets = [*range(0, 48, 3), *range(48, 512, 71), *range(4096, 4128, 3), *range(4128, 5120, 71)]
    for offset in offsets:
        changed = bytearray(original)
        changed[offset] ^= 1 << offset % 8
        (folder / "disk0.index").write_bytes(changed)
        with pytest.raises(DiskfsError):
            OverlayFolder.open(folder, source)


@pytest.mark.parametrize("name", ["disk0.data", "disk0.index", "overlay.json", "lock"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_refused_by_name(
    folder: Path, tmp_path: Path, source: OpenedSource, name: str, kind: str
) -> None:
    path = folder / name
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(DamagedOverlay, match=f"{name}: it is no regular file"):
        OverlayFolder.open(folder, source)
    with pytest.raises(DamagedOverlay, match=f"{name}: it is no regular file"):
        list(OverlayFolder.check(folder))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("block_size",), 4096.0),
        (("options", "format_name"), 5),
        (("options", "parents"), [1]),
        (("options", "parents"), "abc"),
        (("options", "sign"), "no"),
        (("options", "region"), {"a": 1}),
        (("source", "disks", 0, "virtual_size"), 1 << 62),
        (("source", "disks", 0, "virtual_size"), True),
        (("source", "disks", 0, "index"), 1 << 32),
        (("source", "disks", 0, "index"), -1),
    ],
    ids=str,
)
def test_a_description_of_other_types_or_sizes_is_refused(
    folder: Path, place: tuple[str | int, ...], value: object
) -> None:
    path = folder / "overlay.json"
    document = json.loads(path.read_text())
    del document["crc32c"]
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({**document, "crc32c": f"{google_crc32c.extend(0, text):08x}"}))
    with pytest.raises(DamagedOverlay, match="a member is missing or of another type"):
        OverlayFolder.inspect(folder)
    with pytest.raises(DamagedOverlay, match="a member is missing or of another type"):
        list(OverlayFolder.check(folder))
