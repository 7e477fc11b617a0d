"""Workers of a conversion, and layers converted side by side and handed on in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Made = TypeVar("Made")


@contextmanager
def workers(count: int, threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give workers that compute with so many threads each; what none has begun when the block ends is not done.

    OpenMP keeps helpers for every thread that ever asked for some. Where there are more of them than processors, all
    fall asleep after each operation instead of waiting for the next: decompositions of small matrices, in any thread,
    then take five times as long.
    """
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own)  # of threads that begin later


def in_order(convert: Callable[[int], Made], layers: range, jobs: int) -> Iterator[Made]:
    """Give every layer's new form, at most `jobs` of them in work or waiting to be taken.

    With one job each is made when it is asked for, by the thread that asks. With more, each has its share of the
    processor's threads.
    """
    if jobs == 1:
        yield from map(convert, layers)
        return
    with workers(jobs, max(1, torch.get_num_threads() // jobs)) as pool:
        waiting: deque[Future[Made]] = deque()
        for layer in layers:
            waiting.append(pool.submit(convert, layer))
            if len(waiting) == jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
