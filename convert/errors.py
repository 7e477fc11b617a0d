"""What can go wrong, as one exception a user may see: one clear sentence, and an exit code."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConvertAttnError(Exception):
    """A failure with a message meant for the user: what, found, expected, remedy (exit code 1)."""

    exit_code = 1


class UsageError(ConvertAttnError):
    """The request itself cannot be met, whatever the machine does (exit code 2)."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def check_options(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keyword arguments that a function does not have.

    Raises:
        UsageError: naming the first, and what it may have been meant for.
    """
    names = [*known]
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            remedy = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names)}"
            raise UsageError(f"{function}() has no argument '{name}': {remedy}")
