"""Threads of a conversion: one beside it, and layers converted side by side and handed on in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Made = TypeVar("Made")


@contextmanager
def single_thread() -> Iterator[ThreadPoolExecutor]:
    """Give a thread that computes by itself; what it has not begun when the block ends is not done.

    OpenMP keeps helpers for every thread that ever asked for some. Where there are more of them than processors, all
    fall asleep after each operation instead of waiting for the next: decompositions of small matrices, in any thread,
    then take five times as long.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # of threads that begin later


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
