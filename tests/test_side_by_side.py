"""Layers that are converted at once: in their order, no more than were asked for, and the same result."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from checkpoints import Command, save_tiny, tensors_of

from convert_attn import UsageError, convert
from convert_attn.convert.conversion.in_order import in_order, workers


@pytest.mark.parametrize("jobs", [1, 2, 3, 9])
def test_layers_come_in_order_and_no_more_are_in_memory_than_jobs(jobs: int) -> None:
    alive, most, lock, threads = 0, 0, threading.Lock(), torch.get_num_threads()

    def make(layer: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        time.sleep(0.002 * (layer % 3))
        return layer

    seen = []
    for layer in in_order(make, range(8), jobs):
        seen.append(layer)
        with lock:
            alive -= 1
    assert seen == list(range(8))
    assert most <= jobs
    assert torch.get_num_threads() == threads


def test_a_failure_stops_the_rest() -> None:
    begun = []

    def make(layer: int) -> int:
        begun.append(layer)
        if layer == 2:
            raise ValueError("no such layer")
        return layer

    with pytest.raises(ValueError, match="no such layer"):
        list(in_order(make, range(100), 2))
    assert len(begun) < 10


def test_a_thread_beside_the_conversion_computes_alone() -> None:
    threads = torch.get_num_threads()
    with workers(1, threads=1) as beside:
        assert beside.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == threads
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_what_a_thread_has_not_begun_when_the_block_fails_is_not_done() -> None:
    done: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go.wait(10)

    def fail() -> None:
        with workers(1, threads=1) as beside:
            beside.submit(wait)
            beside.submit(done.append, 1)
            begun.wait(10)
            threading.Timer(0.05, go.set).start()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert done == []


@pytest.mark.parametrize("method", ["mean", "random", "subspace"])
def test_jobs_change_nothing_but_the_time(method: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "llama")
    for jobs in (1, 2):
        convert(
            source,
            to="gqa",
            groups=2,
            method=method,
            calibration="none",
            measure=False,
            jobs=jobs,
            output=tmp_path / f"out{jobs}",
        )
    one, two = (tensors_of(tmp_path / f"out{jobs}") for jobs in (1, 2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    configs = [(tmp_path / f"out{jobs}" / "config.json").read_bytes() for jobs in (1, 2)]
    assert configs[0] == configs[1]


def test_no_job_is_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "llama")
    with pytest.raises(UsageError, match="--jobs 0 converts no layer: give 1 or more"):
        convert(source, to="mqa", jobs=0, output=tmp_path / "out")


def test_inspect_says_first_what_the_files_say(tmp_path: Path, command: Command) -> None:
    source = save_tiny(tmp_path / "source", "llama")
    first, *others = command("inspect", source).out.splitlines()
    numbers = sum(tensor.numel() for tensor in tensors_of(source).values())
    assert first.startswith("llama (LlamaForCausalLM): layers 2, hidden size ")
    assert f"{len(tensors_of(source))} tensors, {numbers:,} parameters (F32)" in first
    assert first.endswith("(read from config.json and headers; its class is asked next)")
    assert any("cache as" in line for line in others)
