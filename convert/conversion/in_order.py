"""Layers converted side by side and handed on in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Made = TypeVar("Made")


def in_order(convert: Callable[[int], Made], layers: range, jobs: int) -> Iterator[Made]:
    """Give every layer's new form, at most `jobs` of them in work or waiting to be taken.

    With one job each is made when it is asked for, by the thread that asks. With more, each has its share of the
    processor's threads.
    """
    if jobs == 1:
        yield from map(convert, layers)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(max(1, threads // jobs),))
    waiting: deque[Future[Made]] = deque()
    try:
        for layer in layers:
            waiting.append(pool.submit(convert, layer))
            if len(waiting) == jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
