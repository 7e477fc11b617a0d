"""How long work says how far it is, to whoever shows it: see `cli.bars`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
