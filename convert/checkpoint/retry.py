"""Calls to the Hub, repeated while they fail in a way that passes.

huggingface_hub repeats some of its requests by itself, but neither those that create a repository, commit or check a
card, nor downloads that a server error breaks off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds; doubled after every failure, unless the Hub says how long
_PASSING = frozenset({408, 409, 412, 425, 429})  # and 5xx: another try can end differently


def persistently(call: Callable[[], T], tries: int = 6) -> T:
    """Give the result of a call to the Hub, which is repeated while it fails in a way that passes.

    Raises:
        what the call raised last.
    """
    wait = _FIRST_WAIT
    for _ in range(tries - 1):
        try:
            return call()
        except Exception as error:  # the HTTP client's own errors differ by version
            response = response_of(error)
            if not may_pass(error, response):
                raise
            asked = "" if response is None else response.headers.get("Retry-After", "")
        time.sleep(min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else wait)
        wait = min(2 * wait, _LONGEST_WAIT)
    return call()


def chain(error: BaseException) -> Iterator[BaseException]:
    """Give an error and its causes: the client wraps what an upload raises."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def response_of(error: BaseException) -> Any:
    """Give the Hub's answer behind an error, None where there is none."""
    return next((e.response for e in chain(error) if isinstance(e, HfHubHTTPError)), None)


def may_pass(error: BaseException, response: Any) -> bool:
    """Tell whether another try can end differently: a busy server, a connection that was lost."""
    if response is not None:
        return response.status_code in _PASSING or response.status_code >= 500
    # httpx in huggingface_hub 1, httpx2 in 2
    return any(type(e).__module__.startswith("httpx") or isinstance(e, ConnectionError) for e in chain(error))
