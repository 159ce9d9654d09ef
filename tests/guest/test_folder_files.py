"""A plain folder as a guest's file system, which tests of facts are built on."""

from pathlib import Path

import pytest

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestEntry, GuestFiles, Volume, find
from diskfs.guest.folder_files import FolderFiles
from tests.guest import file_systems as make


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> GuestFiles:
    return FolderFiles(make.make_tree(tmp_path_factory.mktemp("tree") / "root", many=3))


def test_files_folders_and_links(files: GuestFiles) -> None:
    assert files.read("/etc/os-release", limit=26) == b"ID=example\nVERSION_ID=1\n"
    assert files.open("/sizes/4097").read_at(4090, 7) == files.read("/sizes/4097", limit=4097)[4090:]
    assert [entry.name for entry in files.entries("/deep/a")] == ["b"]
    for path in ("/links/good", "/links/absolute", "/links/outside", "/links/folder/os-release"):
        entry = files.entry(path)
        assert entry is not None
        assert entry.kind is FileKind.FILE
    kept = files.entry("/links/good", follow=False)
    assert kept is not None
    assert (kept.kind, kept.target) == (FileKind.LINK, "../etc/./../etc/os-release")


def test_what_is_not_there(files: GuestFiles) -> None:
    assert files.entry("/none") is None
    assert files.entry("/etc/os-release/below") is None
    for action, message in (
        (lambda: files.read("/none", limit=1), "there is no such file"),
        (lambda: files.read("/sizes/512", limit=511), "over the limit of 511"),
        (lambda: files.open("/etc"), "it is not a file"),
        (lambda: files.entries("/holes"), "it is not a folder"),
        (lambda: files.entry("/links/one"), "over 40 links"),
        (lambda: files.entry("relative"), "not an absolute path"),
        (lambda: files.entry("/" + "x" * 4096), "over the limit of 4096"),
    ):
        with pytest.raises(GuestError, match=message):
            action()


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/out").symlink_to("../secret")
    (tmp_path / "root/absolute").symlink_to(tmp_path / "secret")
    inside = FolderFiles(tmp_path / "root")
    assert inside.entry("/out") is None
    assert inside.entry("/absolute") is None
    assert inside.entry("/../secret") is None


def test_case_is_ignored_where_asked(tmp_path: Path) -> None:
    (tmp_path / "Windows/System32").mkdir(parents=True)
    (tmp_path / "Windows/System32/ntoskrnl.exe").write_bytes(b"MZ")
    ntfs = FolderFiles(tmp_path, kind="ntfs", ignore_case=True)
    assert ntfs.read("/WINDOWS/system32/NTOSKRNL.EXE", limit=2) == b"MZ"
    assert FolderFiles(tmp_path).entry("/windows") is None


def test_find_leaves_out_what_fails(tmp_path: Path, files: GuestFiles) -> None:
    (tmp_path / "etc").symlink_to("etc")
    volumes = [
        Volume("disk0p1", 0, 1, 0, 1, "ext4", FolderFiles(tmp_path)),
        Volume("disk0p2", 0, 2, 0, 1, "swap"),
        Volume("disk0p3", 0, 3, 0, 1, "ext4", files),
    ]
    assert find("/etc/os-release", volumes) == [files]


def test_entries_are_values() -> None:
    assert GuestEntry("a", FileKind.FILE, 1, 0o644) == GuestEntry("a", FileKind.FILE, 1, 0o644)
