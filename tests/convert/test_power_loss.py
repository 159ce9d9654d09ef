"""A short tier of scripts/powerloss --commit, and proof that it sees what it looks for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diskfs.convert.job import Sinks
from diskfs.errors import SinkError
from diskfs.sinks import file as file_module
from diskfs.sinks import system_calls
from diskfs.sinks.file import FileSink
from scripts.overlaylib import commit_faults, commit_losses
from scripts.overlaylib.committing import TARGETS, Broken, Target
from tests.convert.commands import diskfs, make_raw
from tests.fuse.mounting import run

RAW = Target("raw")
FLAT = Target("vmdk", "monolithicFlat")


def test_a_power_loss_leaves_the_old_image_the_new_one_or_none(tmp_path: Path) -> None:
    tally = commit_losses.Tally()
    commit_losses.run(tmp_path, "tests", tally, runs=2)
    assert tally.states > 5_000
    assert set(tally.by_target) == set(map(str, TARGETS))
    assert min(tally.absent, tally.old) > 1_000
    assert tally.new > tally.commits


def test_every_failing_call_of_a_commit_is_reported_and_does_no_harm(tmp_path: Path) -> None:
    tally = commit_faults.Tally()
    commit_faults.run(tmp_path, tally, (FLAT,), runs=1)
    assert tally.errors > 100
    assert set(tally.calls) >= {"create", "write", "size", "sync", "link", "rename", "unlink", "sync-names"}


# What follows breaks the commit in one place, and asks for the harm to be seen.

Plant = Callable[[pytest.MonkeyPatch], None]


def _no_sync_of_the_content(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FileSink, "flush", lambda self: None)


def _renamed_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    def commit(self: FileSink) -> None:
        self._publish()
        FileSink.flush(self)
        system_calls.sync_folder(self.path.parent)

    patch.setattr(FileSink, "commit", commit)
    patch.setattr(Sinks, "commit", lambda self: [sink.commit() for sink in reversed(list(self._open.values()))])


def _no_sync_of_the_folder(patch: pytest.MonkeyPatch) -> None:
    def commit(self: FileSink) -> None:
        FileSink.flush(self)
        self._publish()

    patch.setattr(FileSink, "commit", commit)


def _old_file_removed_first(patch: pytest.MonkeyPatch) -> None:
    publish = FileSink._publish

    def remove_and_publish(self: FileSink) -> None:
        if self.path.exists():
            system_calls.unlink(self.path)
        publish(self)

    patch.setattr(FileSink, "_publish", remove_and_publish)


def _stale_files_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(file_module, "remove_stale", lambda folder: None)


def _data_in_the_place_of_the_old(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sinks, "old_image_names", lambda self, name: False)


def _main_file_first(patch: pytest.MonkeyPatch) -> None:
    def commit(self: Sinks) -> None:
        for sink in self._open.values():
            sink.commit()

    patch.setattr(Sinks, "commit", commit)


@pytest.mark.parametrize(
    ("plant", "target", "seen"),
    [
        (_no_sync_of_the_content, RAW, "neither"),
        (_renamed_before_the_sync, RAW, "neither"),
        (_no_sync_of_the_folder, RAW, "has returned"),
        (_old_file_removed_first, RAW, "is gone"),
        (_stale_files_kept, RAW, "after the next run"),
        (_data_in_the_place_of_the_old, FLAT, "neither"),
        (_main_file_first, FLAT, "neither"),
    ],
)
def test_power_losses_show_a_commit_that_is_wrong(
    plant: Plant, target: Target, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Broken, match=seen):
        commit_losses.run(tmp_path, "1", commit_losses.Tally(), (target,), runs=2)


def _errors_of_syncs_ignored(patch: pytest.MonkeyPatch) -> None:
    flush = FileSink.flush

    def careless(self: FileSink) -> None:
        try:
            flush(self)
        except SinkError:
            flush(self)

    patch.setattr(FileSink, "flush", careless)


def _short_writes_taken_for_whole(patch: pytest.MonkeyPatch) -> None:
    def write_once(descriptor: int, offset: int, buffers: list[bytes], name: str) -> None:
        try:
            system_calls.write(descriptor, buffers, offset)
        except OSError as error:
            raise SinkError(name) from error

    patch.setattr(file_module, "write_gathered", write_once)


def _data_left_without_its_main_file(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FileSink, "abort", lambda self: self._close())


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        (_errors_of_syncs_ignored, "power loss takes"),
        (_short_writes_taken_for_whole, "not right"),
        (_data_left_without_its_main_file, "temporary file"),
    ],
)
def test_failing_calls_show_a_commit_that_is_wrong(
    plant: Plant, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Broken, match=seen):
        commit_faults.run(tmp_path, commit_faults.Tally(), (RAW,), runs=1)


def test_a_flat_vmdk_that_replaces_another_takes_the_name_that_is_free(tmp_path: Path) -> None:
    raw, target = make_raw(tmp_path / "disk.raw"), tmp_path / "out.vmdk"
    # The old image is another program's; nothing of it may stay.
    run("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", target, "1M")
    for name in ("out-flat-2.vmdk", "out-flat.vmdk"):
        diskfs("convert", raw, target, "--variant", "monolithicFlat", "--force")
        assert {path.name for path in tmp_path.iterdir()} == {"disk.raw", "out.vmdk", name}
        run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, target)


def test_a_second_file_that_is_being_read_is_not_replaced(tmp_path: Path) -> None:
    raw, target = make_raw(tmp_path / "disk.raw"), tmp_path / "out.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, target)
    arguments = (tmp_path / "out-flat.vmdk", target, "-O", "vmdk", "--variant", "monolithicFlat", "--force")
    assert "being read" in diskfs("convert", *arguments, code=1).stderr
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, target)
