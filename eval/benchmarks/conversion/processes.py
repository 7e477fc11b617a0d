"""A command run to its end: how long it took, what it computed, how much memory it and what it started had."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import click
import psutil

_EVERY = 0.02  # seconds between two looks at memory


@dataclass(frozen=True)
class Run:
    """One run of a command.

    Attributes:
        wall: seconds.
        processor: seconds of all its processes, in the kernel and outside.
        peak: bytes resident, the most of all its processes together that was seen.
    """

    wall: float
    processor: float
    peak: int


def run(command: Sequence[str]) -> Run:
    """Run a command.

    Raises:
        ClickException: it failed; with the last line of what it said.
    """
    begin, before = time.perf_counter(), psutil.Process().cpu_times()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peaks = [0]
    looking = threading.Thread(target=_look, args=(process, peaks))
    looking.start()
    _, errors = process.communicate()
    wall, after = time.perf_counter() - begin, psutil.Process().cpu_times()
    looking.join()
    if process.returncode:
        said = errors.strip().splitlines() or ["it said nothing"]
        raise click.ClickException(f"'{' '.join(command)}' failed with status {process.returncode}: {said[-1]}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(wall, processor, max(peaks))


def first_line(command: Sequence[str]) -> Run:
    """Run a command and time it until it has printed a line; the rest of it runs on and is not counted.

    Raises:
        ClickException: it printed nothing.
    """
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line, wall = process.stdout.readline(), time.perf_counter() - begin
        used = psutil.Process(process.pid)
        times, peak = used.cpu_times(), _resident(used)
        process.stdout.read()
    if not line:
        raise click.ClickException(f"'{' '.join(command)}' printed nothing")
    return Run(wall, times.user + times.system, peak)


def _look(process: subprocess.Popen[str], peaks: list[int]) -> None:
    while process.poll() is None:
        try:
            first = psutil.Process(process.pid)
            peaks.append(sum(_resident(one) for one in (first, *first.children(recursive=True))))
        except psutil.NoSuchProcess:
            return
        time.sleep(_EVERY)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Give median, least and most of the seconds, the median of the processor's, the largest peak."""
    walls = [one.wall for one in runs]
    return {
        "name": name,
        "runs": len(runs),
        "seconds": median(walls),
        "least": min(walls),
        "most": max(walls),
        "processor_seconds": median(one.processor for one in runs),
        "peak_bytes": max(one.peak for one in runs),
    }
