"""Short tiers of scripts/soak-overlay and scripts/powerloss, and proof that they see what they look for."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from diskfs.disks.overlay.block_map import BlockMap, Page
from diskfs.disks.overlay.data_file import DataFile
from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.errors import OutOfSpace, OverlayWriteError
from scripts.overlaylib import faults, folder_losses, model, powerloss, threads
from scripts.overlaylib.simulated import SimulatedFile


def test_random_operations_in_memory_agree_with_a_byte_array() -> None:
    done, compared = list(model.run(15_000, "tests"))[-1]
    assert (done, compared > 6_000) == (15_000, True)


def test_random_operations_on_real_files_agree_with_a_byte_array(tmp_path: Path) -> None:
    list(model.run(2_000, "tests on files", tmp_path))
    assert not list(tmp_path.iterdir())


def test_threads_that_share_blocks_find_what_they_wrote() -> None:
    assert threads.run(4, 200, "tests") == 4 * 200 * threads.THREADS


def test_no_power_loss_loses_what_was_flushed_or_tears_a_sector() -> None:
    tally = powerloss.Tally()
    list(powerloss.run(2_000, "tests", tally))
    assert tally.states >= 2_000


def test_no_power_loss_leaves_a_folder_that_cannot_be_opened(tmp_path: Path) -> None:
    tally = powerloss.Tally()
    folder_losses.run(tmp_path, tally)
    assert tally.states > 1_000


def test_every_failing_call_is_reported_and_does_no_harm(tmp_path: Path) -> None:
    tally = faults.Tally()
    faults.run(tmp_path, tally)
    assert tally.errors > 1_000
    assert {name for name, calls in tally.calls.items() if calls == 0} == {"map"}


# What follows breaks the store in one place, and asks for the harm to be seen.

Plant = Callable[[pytest.MonkeyPatch], None]


def _no_sync_of_data(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataFile, "sync", lambda self: None)


def _no_sync_of_the_index(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockMap, "sync", lambda self: None)


def _index_before_the_data(patch: pytest.MonkeyPatch) -> None:
    mark = BlockMap.mark

    def mark_and_write(self: BlockMap, number: int, first: int, end: int, state: int) -> None:
        mark(self, number, first, end, state)
        self.write(self.take_dirty())
        self.written()

    patch.setattr(BlockMap, "mark", mark_and_write)


def _states_taken_after_the_sync(patch: pytest.MonkeyPatch) -> None:
    take = BlockMap.take_dirty
    write = BlockMap.write

    def take_nothing_yet(self: BlockMap) -> dict[int, bytes]:
        return dict.fromkeys(self._dirty, b"")

    def take_and_write(self: BlockMap, taken: dict[int, bytes]) -> None:
        write(self, take(self))

    patch.setattr(BlockMap, "take_dirty", take_nothing_yet)
    patch.setattr(BlockMap, "write", take_and_write)


def _parts_of_sectors_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OverlayDisk, "_rest_of_sector", lambda self, start, end: b"")


def _guards_written_with_their_pages(patch: pytest.MonkeyPatch) -> None:
    write = BlockMap.write

    def guard_and_write(self: BlockMap, taken: dict[int, bytes]) -> None:
        self.guards.synced(taken)
        write(self, taken)

    patch.setattr(BlockMap, "write", guard_and_write)


def _blocks_not_completed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OverlayDisk, "_below", lambda self, number, block, offset, length: bytes(length))


def _flush_skipped_for_writes_in_place(patch: pytest.MonkeyPatch) -> None:
    flush = OverlayDisk._flush

    def forgetful(self: OverlayDisk) -> None:
        if self._map.dirty_pages:
            flush(self)

    patch.setattr(OverlayDisk, "_flush", forgetful)


@pytest.mark.parametrize(
    ("plant", "seed"),
    [
        (_no_sync_of_data, "1"),
        (_no_sync_of_the_index, "1"),
        (_index_before_the_data, "1"),
        (_states_taken_after_the_sync, "20"),
        (_parts_of_sectors_written, "1"),
        (_guards_written_with_their_pages, "1"),
        (_blocks_not_completed, "1"),
        (_flush_skipped_for_writes_in_place, "1"),
    ],
)
def test_power_losses_show_a_store_that_is_wrong(plant: Plant, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(powerloss.Lost):
        list(powerloss.run(20_000, seed, powerloss.Tally()))


def _dirty_pages_dropped(patch: pytest.MonkeyPatch) -> None:
    def drop(self: BlockMap) -> None:
        for number in list(self._pages)[:1]:
            del self._pages[number]

    patch.setattr(BlockMap, "_evict", drop)
    mark = BlockMap.mark

    def mark_nothing(self: BlockMap, number: int, first: int, end: int, state: int) -> None:
        mark(self, number, first, end, state)
        self._dirty = dict.fromkeys(self._dirty, Page(bytes(1920))) if len(self._pages) > 1 else self._dirty

    patch.setattr(BlockMap, "mark", mark_nothing)


def _last_block_left_by_a_discard(patch: pytest.MonkeyPatch) -> None:
    discard = OverlayDisk._discard_part
    patch.setattr(OverlayDisk, "_discard_part", lambda self, number, one, two: discard(self, number, one, two - 1))


@pytest.mark.parametrize("plant", [_blocks_not_completed, _dirty_pages_dropped, _last_block_left_by_a_discard])
def test_random_operations_show_a_store_that_is_wrong(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(model.Difference):
        list(model.run(100_000, "tests"))


def _no_locks(patch: pytest.MonkeyPatch) -> None:
    create = OverlayDisk.__init__

    def unlocked(self: OverlayDisk, *arguments: Any) -> None:
        create(self, *arguments)
        self._stripes = tuple(cast("threading.Lock", _NoLock()) for _ in range(64))

    patch.setattr(OverlayDisk, "__init__", unlocked)


class _NoLock(contextlib.nullcontext[None]):
    def locked(self) -> bool:
        return False


def test_threads_show_a_store_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_locks(monkeypatch)
    with pytest.raises(model.Difference):
        threads.run(200, 200, "tests")


def _error_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OverlayDisk, "_broken", lambda self, error, doing: OverlayWriteError("once"))


def _any_error_is_a_lack_of_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OverlayDisk, "_broken", lambda self, error, doing: OutOfSpace("again"))


def _pages_kept_after_a_failed_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedFile, "forget_clean_pages", lambda self: None)


def _error_swallowed(patch: pytest.MonkeyPatch) -> None:
    def write_at(self: DataFile, offset: int, data: bytes) -> None:
        try:
            for file, start, _ in self._parts(offset, len(data)):
                file.write_at(start, data)
        except OSError:
            pass

    patch.setattr(DataFile, "write_at", write_at)


@pytest.mark.parametrize(
    "plant",
    [_error_forgotten, _any_error_is_a_lack_of_room, _pages_kept_after_a_failed_sync, _error_swallowed],
)
def test_faults_show_a_store_that_is_wrong(plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch)
    with pytest.raises(faults.Wrong):
        faults.run(tmp_path, faults.Tally())
