"""How long work tells how far it is, and bars in the terminal that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""

Note = Callable[[str, str], None]
"""Called with a stage's name and a few words to stand beside its bar."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers shows no progress of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def progress_bars(console: Console, quiet: bool) -> Iterator[Progress]:
    """A bar per stage."""
    with noted_bars(console, quiet) as (advance, _):
        yield advance


@contextmanager
def noted_bars(console: Console, quiet: bool, *more: ProgressColumn) -> Iterator[tuple[Progress, Note]]:
    """A bar per stage, with further columns that may show `task.fields[note]`; and what writes a stage's note."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more)
    with Bars(*columns, console=console, disable=quiet) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=done, total=total)

        def note(stage: str, text: str) -> None:
            if stage in tasks:
                bars.update(tasks[stage], note=text)

        yield advance, note
