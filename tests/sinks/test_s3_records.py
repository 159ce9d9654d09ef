"""The notes of uploads: what a killed run has left is found, and what a living one has is not touched."""

import os
from pathlib import Path

import pytest

from diskfs.sinks.s3_records import Record, ids_of_others, left_behind, state_folder

TOKENS = [f"{number:032x}" for number in range(4)]


def noted(token: str, upload_id: str) -> Record:
    """Write a note of this process."""
    record = Record("e", "b", "k", known=["old"], began=1000.0)
    record.note(state_folder(), token)
    if upload_id:
        record.note_id(upload_id)
    return record


def test_a_note_is_left_to_the_next_run_when_its_writer_is_gone(state_folder: Path) -> None:
    living, dead = noted(TOKENS[0], "id0"), noted(TOKENS[1], "id1")
    assert list(left_behind(state_folder, "e", "b")) == []
    dead.release()
    (found,) = left_behind(state_folder, "e", "b")
    assert (found.key, found.upload_id, found.known, found.began) == ("k", "id1", ["old"], 1000.0)
    # It is locked by whoever takes it up.
    assert list(left_behind(state_folder, "e", "b")) == []
    found.forget()
    assert [path.name for path in state_folder.iterdir()] == [f"{TOKENS[0]}.upload"]
    living.forget()
    assert not list(state_folder.iterdir())


@pytest.mark.parametrize(("endpoint", "bucket"), [("e", "other"), ("other", "b")])
def test_notes_of_other_buckets_and_services_stay(endpoint: str, bucket: str, state_folder: Path) -> None:
    noted(TOKENS[0], "id").release()
    assert list(left_behind(state_folder, endpoint, bucket)) == []
    assert len(list(left_behind(state_folder, "e", "b"))) == 1


def test_a_note_that_was_cut_or_is_none_is_no_error(state_folder: Path) -> None:
    noted(TOKENS[0], "id0").release()
    path = state_folder / f"{TOKENS[0]}.upload"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        found = list(left_behind(state_folder, "e", "b"))
        # Without its first line nothing had been begun; with it, the upload may be there.
        assert [record.upload_id for record in found] == ([] if length < first - 1 else [""]), length
        for record in found:
            record.release()
    for content in (b"", b"[]", b"{}", b"\xff\xfe", b'{"endpoint": 1}', b"null\nnull", b"9" * 5000):
        path.write_bytes(content)
        assert list(left_behind(state_folder, "e", "b")) == []
    (state_folder / "unrelated").write_bytes(whole)
    os.symlink("unrelated", state_folder / f"{TOKENS[1]}.upload")
    assert list(left_behind(state_folder, "e", "b")) == []


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"began": ' + b"9" * 400 + b"}",
        b'{"began": 1e999}',
        b'{"began": null}',
        b'{"upload_id": {"a": 1}}',
        b'{"upload_id": "\\ud800"}',
        b'{"known": 7}',
    ],
)
def test_what_a_note_says_is_not_believed(line: bytes, state_folder: Path) -> None:
    noted(TOKENS[0], "").release()
    with (state_folder / f"{TOKENS[0]}.upload").open("ab") as file:
        file.write(line + b"\n")
    (found,) = left_behind(state_folder, "e", "b")
    assert (found.key, found.upload_id) == ("k", "")
    assert found.began in {0.0, 1000.0}
    found.release()


def test_a_note_of_a_key_that_is_no_text_is_none(state_folder: Path) -> None:
    noted(TOKENS[0], "").release()
    (state_folder / f"{TOKENS[0]}.upload").write_bytes(b'{"endpoint": "e", "bucket": "b", "key": "\\ud800"}\n')
    assert list(left_behind(state_folder, "e", "b")) == []


def test_a_pipe_among_the_notes_holds_up_nobody(state_folder: Path) -> None:
    own = noted(TOKENS[0], "own")
    os.mkfifo(state_folder / f"{TOKENS[1]}.upload")
    assert ids_of_others(state_folder, own) == set()
    assert list(left_behind(state_folder, "e", "b")) == []
    own.forget()


def test_a_note_is_for_nobody_else_to_read(state_folder: Path) -> None:
    record = noted(TOKENS[0], "id")
    assert record.path is not None
    assert record.path.stat().st_mode & 0o777 == 0o600
    assert state_folder.stat().st_mode & 0o777 == 0o700
    record.forget()


def test_uploads_in_other_notes_are_known(state_folder: Path) -> None:
    own, other = noted(TOKENS[0], "own"), noted(TOKENS[1], "other")
    assert ids_of_others(state_folder, own) == {"other"}
    own.forget()
    other.forget()


def test_without_a_folder_the_upload_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nothing")
    record = noted(TOKENS[0], "id")
    assert record.path is None
    record.forget()
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/somewhere")
    assert state_folder() == Path("/somewhere/.local/state/diskfs/uploads")
