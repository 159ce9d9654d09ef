"""Requests are received through the gate, fairly, and pyfuse3's own way still works where the gate cannot."""

import os
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from diskfs.fuse import session_gate
from diskfs.fuse.session_gate import REPLACED, Session, SessionGate


def test_the_function_that_the_gate_replaces_is_there() -> None:
    # If this fails after an upgrade of pyfuse3: mounts still work, slower. Read docs/decisions/0004-session-gate.md.
    assert callable(getattr(pyfuse3, REPLACED))


def test_without_that_function_pyfuse3_serves_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    served = []

    async def serve() -> None:
        served.append("by itself")

    monkeypatch.delattr(pyfuse3, REPLACED)
    monkeypatch.setattr(pyfuse3, "main", serve)
    trio.run(Session({3}).serve)
    assert served == ["by itself"]


def test_the_function_is_put_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(pyfuse3, REPLACED)

    async def fail(**_: int) -> None:
        assert getattr(pyfuse3, REPLACED) is not original
        raise RuntimeError("planted")

    monkeypatch.setattr(pyfuse3, "main", fail)
    with pytest.raises(RuntimeError, match="planted"):
        trio.run(Session({0}).serve)
    assert getattr(pyfuse3, REPLACED) is original


def test_one_worker_waits_at_the_descriptor_and_each_request_wakes_one() -> None:
    async def check() -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        gate = SessionGate(reading)
        taken: list[tuple[int, bytes]] = []
        pause = trio.Event()

        async def worker(number: int) -> None:
            while await gate.wait():
                try:
                    data = os.read(reading, 1)
                except BlockingIOError:
                    pytest.fail("a worker was sent to an empty descriptor, where receiving would block")
                if not data:
                    return
                taken.append((number, data))
                if data == b"s":
                    await pause.wait()

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(worker, number)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writing, b"abc")
            await trio.testing.wait_all_tasks_blocked()
            assert b"".join(data for _, data in taken) == b"abc"
            # A request that has to wait keeps nobody else from being served.
            os.write(writing, b"sdssef")
            await trio.testing.wait_all_tasks_blocked()
            assert b"".join(data for _, data in taken) == b"abcsdssef"
            pause.set()
            os.close(writing)
        os.close(reading)

    trio.run(check)


def test_other_tasks_run_while_requests_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        reading, writing = os.pipe()
        os.write(writing, b"x")
        gate = SessionGate(reading)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await trio.sleep(0.001)
                ticks += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            with trio.move_on_after(0.5):
                while True:
                    # There is always another request: nothing is ever read from the pipe.
                    assert await gate.wait()
            nursery.cancel_scope.cancel()
        assert ticks >= 20
        os.close(reading)
        os.close(writing)

    monkeypatch.setattr(session_gate, "LONGEST_TURN", 0.005)
    trio.run(check)


def test_a_closed_descriptor_ends_every_worker() -> None:
    async def check() -> None:
        reading, writing = os.pipe()
        gate = SessionGate(reading)
        ended = []

        async def worker(number: int) -> None:
            assert not await gate.wait()
            ended.append(number)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(worker, number)
                await trio.testing.wait_all_tasks_blocked()
                trio.lowlevel.notify_closing(reading)
        assert sorted(ended) == [0, 1, 2, 3, 4]
        os.close(reading)
        os.close(writing)

    trio.run(check)


def test_closing_ends_workers_that_sleep_and_one_that_is_between_two_requests() -> None:
    async def check() -> None:
        reading, writing = os.pipe()
        os.write(writing, b"x")
        gate = SessionGate(reading)
        ended = []
        busy = trio.Event()

        async def between_two_requests() -> None:
            assert await gate.wait()
            os.read(reading, 1)
            await busy.wait()
            # Nobody watches the descriptor now, and nothing more will come from it.
            assert not await gate.wait()
            ended.append("between")

        async def worker() -> None:
            assert not await gate.wait()
            ended.append("asleep")

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(between_two_requests)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(worker)
                nursery.start_soon(worker)
                await trio.testing.wait_all_tasks_blocked()
                gate.close()
                trio.lowlevel.notify_closing(reading)
                busy.set()
        assert sorted(ended) == ["asleep", "asleep", "between"]
        os.close(reading)
        os.close(writing)

    trio.run(check)


def test_the_descriptor_of_the_mount_is_found() -> None:
    if not Path("/dev/fuse").exists() or os.geteuid():
        pytest.skip("/dev/fuse is not there or may not be used")
    before = session_gate.fuse_descriptors()
    fd = os.open("/dev/fuse", os.O_RDWR)
    assert session_gate.fuse_descriptors() - before == {fd}
    os.close(fd)
