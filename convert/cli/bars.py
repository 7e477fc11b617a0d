"""How long work tells how far it is: bars in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import click

from convert_attn.convert.progress import Note, Progress, silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

LINE_EVERY = 30.0
"""Seconds between two lines about a stage that runs on."""

_LOOK_EVERY = 1.0  # seconds between two looks at the clock while nothing moves


@contextmanager
def progress_bars(console: Console, quiet: bool = False) -> Iterator[Progress]:
    """Show a bar per stage, or lines on stderr where there is no terminal to draw in.

    Args:
        console: where bars are drawn if it is a terminal; else stderr, if that is one.
        quiet: show nothing at all.
    """
    with noted_bars(console, quiet) as (advance, _):
        yield advance


@contextmanager
def noted_bars(console: Console, quiet: bool, *more: ProgressColumn) -> Iterator[tuple[Progress, Note]]:
    """Show a bar per stage, or lines on stderr; hand out what moves a stage on and what writes its note.

    Args:
        console, quiet: as in `progress_bars`.
        more: further columns of a bar, which may show `task.fields[note]`; in a line the note comes last.
    """
    from rich.console import Console as Terminal

    drawable = [place for place in (console, Terminal(stderr=True)) if place.is_terminal and not place.is_dumb_terminal]
    if quiet:
        yield silent, lambda stage, text: None
    elif drawable:
        with _bars(drawable[0], *more) as shown:
            yield shown
    else:
        with _written(Lines(sys.stderr)) as lines:
            yield lines.advance, lines.note


@contextmanager
def _bars(console: Console, *more: ProgressColumn) -> Iterator[tuple[Progress, Note]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more)
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=done, total=total)

        def note(stage: str, text: str) -> None:
            if stage in tasks:
                bars.update(tasks[stage], note=text)

        yield advance, note


@dataclass(kw_only=True)
class _Stage:
    """What is known of a stage that runs.

    Attributes:
        since: the clock when it began.
        first: how much of it was done then: more than nothing where a run goes on from an earlier one.
    """

    since: float
    first: int
    done: int
    total: int
    note: str = ""


class Lines:
    """Progress as lines of text: one when a stage begins, one when it ends, and some while it runs.

    Its methods may be called from several threads.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to a stream.

        Args:
            stream: each line is written in one piece and flushed.
            clock: seconds since some moment.
        """
        self._stream, self._clock = stream, clock
        self._lock = threading.Lock()
        self._running: dict[str, _Stage] = {}
        self._ended: set[str] = set()
        self._latest, self._last = "", clock()

    def advance(self, stage: str, done: int, total: int) -> None:
        """Note how far a stage is; write when it begins, when it ends, and when a line is due."""
        with self._lock:
            known = self._running.get(stage)
            if known is None:
                if stage in self._ended and done >= total:
                    return
                known = self._running[stage] = _Stage(since=self._clock(), first=done, done=done, total=total)
                self._ended.discard(stage)
                self._write(f"{stage} begins" if done == 0 else f"{stage} goes on at {done}/{total}")
            known.first, known.done, known.total = min(known.first, done), done, total
            self._latest = stage
            if done >= total:
                del self._running[stage]
                self._ended.add(stage)
                self._write(f"{stage} ends after {_duration(self._clock() - known.since)}{known.note}")
            else:
                self._due()

    def note(self, stage: str, text: str) -> None:
        """Have a few words stand at the end of the lines about a stage."""
        with self._lock:
            if stage in self._running:
                self._running[stage].note = f", {text}" if text else ""

    def tick(self) -> None:
        """Write a line about the stage that moved last, if it runs and `LINE_EVERY` has passed since the last line."""
        with self._lock:
            self._due()

    def _due(self) -> None:
        known = self._running.get(self._latest)
        now = self._clock()
        if known is None or now - self._last < LINE_EVERY:
            return
        gone, moved = now - known.since, known.done - known.first
        left = f", about {_duration(gone * (known.total - known.done) / moved)} left" if moved else ""
        share = f"{known.done}/{known.total} ({known.done / known.total:.0%}".replace("%", " %)")
        self._write(f"{self._latest} {share}, {_duration(gone)}{left}{known.note}")

    def _write(self, line: str) -> None:
        self._last = self._clock()
        with suppress(OSError, ValueError):  # hours of work do not end because nobody reads the log any more
            click.echo(line, file=self._stream)


def _duration(seconds: float) -> str:
    """In a few words: 35 s, 12 min, 3.4 h."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def _written(lines: Lines) -> Iterator[Lines]:
    """Lines that come while a step takes longer than they are apart, too."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            lines.tick()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield lines
    finally:
        over.set()
        watcher.join()
