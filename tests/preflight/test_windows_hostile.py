"""Hives, boot stores and answer files made to break a reader: the rules say what they found, and end in time."""

import time
from pathlib import Path

import pytest

from diskfs.preflight.rules.outcome import Status
from tests.guest.test_registry import ROOT_CELL, with_lists
from tests.preflight.windows_hostile import hostile_runs
from tests.preflight.windows_tree import results, windows_tree

FOLDER = "/Windows/System32/config/"
ROUNDS = 12
SEED = 20261127


def test_spoiled_hives_end_in_findings(tmp_path: Path) -> None:
    begin = time.process_time()

    for found in hostile_runs(tmp_path, SEED, ROUNDS):
        assert len(found) > 100

    assert time.process_time() - begin < 20


@pytest.mark.parametrize("name", ["SYSTEM", "SOFTWARE"])
def test_a_hive_of_a_billion_keys_is_given_up(name: str, tmp_path: Path) -> None:
    begin = time.process_time()

    found = results(windows_tree(tmp_path, files={FOLDER + name: with_lists([ROOT_CELL] * 60000, index=60000)}))

    rule = {"SYSTEM": "VMIE-WIN-18", "SOFTWARE": "VMIE-WIN-13"}[name]
    assert found[rule].status is Status.UNKNOWN
    assert "keys, values and list elements were looked at" in found[rule].found
    assert time.process_time() - begin < 30


def test_deep_and_large_answer_files_are_findings(tmp_path: Path) -> None:
    namespace = b"<unattend xmlns='urn:schemas-microsoft-com:unattend'>"
    for number, (content, found) in enumerate(
        [
            (namespace + b"<a>" * 20000 + b"</a>" * 20000 + b"</unattend>", "has no settings of the pass oobeSystem"),
            (b"x" * (1 << 20), "it is no well-formed XML"),
            (b"x" * ((1 << 20) + 1), "over the limit of"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        rule = results(windows_tree(folder, files={"/Windows/Panther/unattend.xml": content}))["VMIE-WIN-22"]
        assert found in rule.found
