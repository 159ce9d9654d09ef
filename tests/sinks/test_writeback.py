"""Writing to the disk begins while a file is being written, and what goes wrong then is told by the sync at its end."""

import os
from pathlib import Path

import pytest

from diskfs import writeback
from diskfs.sinks import system_calls
from diskfs.sinks.file import FileSink


def test_the_kernel_is_told_to_begin_once_for_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(writeback, "STEP", 8192)
    monkeypatch.setattr(system_calls, "begin_writeback", begun.append)
    sink = FileSink(tmp_path / "x")
    for wanted, length in ((0, 8191), (1, 1), (1, 100), (2, 100_000), (2, 8191), (3, 1)):
        sink.write(b"x" * length)
        assert len(begun) == wanted
    sink.write_zeroes(1 << 20)
    assert len(begun) == 3
    sink.commit()
    assert (tmp_path / "x").read_bytes() == b"x" * 116_484 + bytes(1 << 20)


def test_beginning_raises_nothing_whatever_it_is_asked_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    system_calls.begin_writeback(writing)
    os.close(reading)
    os.close(writing)
    system_calls.begin_writeback(writing)
    path = tmp_path / "x"
    path.write_bytes(b"x" * 8192)
    with path.open("rb") as file:
        system_calls.begin_writeback(file.fileno())
    assert path.read_bytes() == b"x" * 8192
