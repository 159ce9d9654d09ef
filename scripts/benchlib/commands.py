"""Runs other programs, and measures their time and memory."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Argument = str | Path


class BenchError(Exception):
    """A benchmark cannot go on; the message is for the person who started it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended with status 0.

    `max_rss` is the peak resident memory in bytes. The kernel counts the moment between fork and exec too, so it is
    never less than what this process holds; that is far below every bar.
    """

    seconds: float
    max_rss: int
    stdout: str
    cpu_seconds: float
    """Of the program and of the children that it waited for."""


def run(command: Sequence[Argument], *, grace_seconds: float = 0.0) -> Finished:
    """Run `command` to its end. Raises BenchError with its last words if it is missing or fails.

    If this process is told to stop meanwhile, the command gets `grace_seconds` to end by itself. One that mounts needs
    them: cut short, it could leave a server that mounts after everything was cleaned up.
    """
    words = [str(argument) for argument in command]
    # Files and not pipes: a program that leaves a server behind would keep a pipe open for as long as the server lives.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        except OSError as error:
            raise missing_program(words[0], error) from error
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _end(process, grace_seconds)
            raise
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)  # Popen cannot know of a process reaped elsewhere.
        if process.returncode:
            stderr.seek(0)
            last_words = stderr.read().decode(errors="replace").strip().splitlines()[-3:]
            raise BenchError(f"{' '.join(words)}: exit status {process.returncode}: {' / '.join(last_words)}")
        stdout.seek(0)
        said = stdout.read().decode(errors="replace")
        return Finished(seconds, usage.ru_maxrss * 1024, said, usage.ru_utime + usage.ru_stime)


def _end(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def missing_program(name: str, error: OSError) -> BenchError:
    """Return what to raise for a program that cannot be started."""
    return BenchError(f"{name}: {error.strerror}; docs/PERFORMANCE.md lists the packages needed")


def first_line(command: Sequence[Argument]) -> str:
    """Return the first line a program prints: its version."""
    return (run(command).stdout.splitlines() or [""])[0]
