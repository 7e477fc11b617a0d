"""What can go wrong, as one exception a user may see: one clear sentence, and an exit code."""

from __future__ import annotations


class ConvertAttnError(Exception):
    """A failure with a message meant for the user: what, found, expected, remedy (exit code 1)."""

    exit_code = 1


class UsageError(ConvertAttnError):
    """The request itself cannot be met, whatever the machine does (exit code 2)."""

    exit_code = 2
