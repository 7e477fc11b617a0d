"""What can go wrong, as one exception a user may see: one clear sentence, and an exit code."""

from __future__ import annotations


class ConvertAttnError(Exception):
    """A failure with a message meant for the user: what, found, expected, remedy (exit code 1)."""

    exit_code = 1


class UsageError(ConvertAttnError):
    """The request itself cannot be met, whatever the machine does (exit code 2)."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Give the first line of what an exception says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
