"""The memory that healing takes: predicted before it begins, kept to, and what is chosen or refused by it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from checkpoints import config_of
from test_heal import Made
from tiny import tiny_model

from convert_attn import ConvertAttnError, convert
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.heal.memory import planning
from convert_attn.convert.heal.memory.activations import Activations
from convert_attn.convert.heal.memory.free_memory import cgroup_room, free_memory
from convert_attn.convert.heal.memory.prediction import ParameterCounts, Predictor
from convert_attn.convert.heal.state.pair import open_pair
from convert_attn.convert.heal.state.settings import Settings
from convert_attn.convert.heal.training import layerwise
from convert_attn.convert.option_types import ShareOrAuto, Size

_MEASURE = """
import re, sys
from convert_attn import heal
told = []
options = eval(sys.argv[1])
heal(**options, show=lambda record: told.append(record.get("memory")))
print([words for words in told if words][0])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
"""


def _peak(options: dict[str, Any]) -> tuple[str, float]:
    """What a run in a process of its own said of its memory, and its peak in GB."""
    line = [sys.executable, "-c", _MEASURE, repr(options)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-3000:]
    told, peak = ended.stdout.splitlines()[-2:]
    return told, int(peak) * 1024 / 1e9


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' own figure of the peak")
@pytest.mark.parametrize("change", [{}, {"gradient_checkpointing": True}, {"train": "attention"}], ids=str)
def test_the_peak_is_what_was_predicted(change: dict[str, Any], tmp_path: Path, slow: bool) -> None:
    if change and not slow:
        pytest.skip("two runs of half a minute each: --slow")
    words, length = 60_000, 256
    sizes = {"vocab_size": words, "hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": length}
    tiny_model("llama", **sizes, tie_word_embeddings=True).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", output=tmp_path / "student", to="mqa", method="mean")
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, words, (24, length)))
    options = {"converted": str(tmp_path / "student"), "teacher": str(tmp_path / "in"), "cpu": True}
    options |= {"data": str(tmp_path / "tokens.npy"), "output": str(tmp_path / "out"), "tokens": 16 * length}
    options |= {"batch_size": 8, "selection_tokens": 4 * length, "stages": ("distill",)} | change
    told, peak = _peak(options)
    predicted, kept, held = _told(told)
    # (whole logits, half a GB in fp32 for one model, would be far beyond)
    assert 0.75 < predicted / peak < 1.3, told
    assert kept > 0
    bound = held + 1.1 * (predicted - held - kept)  # with which nothing is kept that is freed
    told, peak = _peak(options | {"output": str(tmp_path / "tight"), "max_memory": int(bound * 1e9)})
    predicted, kept, _ = _told(told)
    assert kept == 0
    assert 0.85 < predicted / peak < 1.2, told
    assert peak < 1.1 * bound


def _told(words: str) -> tuple[float, float, float]:
    """What a run said it takes, what it keeps of that though it is freed and what it held already, in GB."""
    predicted, held = (float(re.findall(rf"{name} ([\d.]+) GB", words)[0]) for name in ("predicted:", "already"))
    kept = re.findall(r"kept ([\d.]+) GB", words)
    return predicted, float(kept[0]) if kept else 0.0, held


def _predictor(own: int = 8, **options: Any) -> Predictor:
    """A model of 100 M parameters whose blocks keep 100 MB for each window."""
    settings = Settings(tokens=10**6, **options)
    sizes = ParameterCounts(
        teacher=10**8, student=10**8, trained=10**8, apart=0, block=10**6, table=10**7, outside=10**7
    )
    block = Activations(0, 10**8)
    return Predictor(
        settings=settings,
        sizes=sizes,
        block=block,
        layers=10,
        hidden=500,
        vocabulary=1000,
        length=1000,
        windows=0,
        dtype=torch.float32,
        device=torch.device("cpu"),
        shards=1,
        own=own,
    )


def test_a_smaller_micro_batch_is_chosen_first_then_activations_again() -> None:
    predictor = _predictor()
    chosen = [predictor.choose(int(room * 1e9), "here") for room in (20.0, 4.5, 2.8)]
    assert [(plan.micro, plan.checkpointing) for plan in chosen] == [(1, False), (1, False), (4, True)]
    for plan, room in zip(chosen, (20.0, 4.5, 2.8), strict=True):
        assert plan.needs.peak <= room * 1e9
    fixed = _predictor(micro_batch_size=4).choose(int(20e9), "here")
    assert (fixed.micro, fixed.checkpointing) == (4, True)


def test_what_does_not_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(ConvertAttnError) as refused:
        _predictor().choose(10**9, "the machine")
    said = str(refused.value)
    for words in ("2.", "the machine has 1.00 GB", "--train attention", "--lora-rank 16", "1 window of 1000 tokens"):
        assert words in said
    assert "\n" not in said


def test_a_run_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    made = Made(tmp_path / "made")
    with pytest.raises(ConvertAttnError, match=r"healing takes .* --max-memory 0.01 GB, of which .* are in use"):
        made.heal(max_memory=10_000_000)
    assert not (made.folder / "out.heal").exists()
    assert made.heal(max_memory=10**12).steps > 0


def test_a_run_goes_on_with_the_micro_batch_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class _StopError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["stage"] == "distill" and record["step"] == 1:
            raise _StopError

    made = Made(tmp_path / "made")
    monkeypatch.setattr(Predictor, "choose", lambda self, room, named: [*self.plans()][1])
    with pytest.raises(_StopError):
        made.heal(show=stop, lr=1e-3)
    monkeypatch.undo()
    resumed = made.heal(resume=True, lr=1e-3)
    assert config_of(resumed.output)["convert_attn"]["heal"][0]["settings"]["micro_batch_size"] == 2


def test_parameters_are_counted_as_the_class_has_them(tmp_path: Path) -> None:
    made = Made(tmp_path / "made")
    pair = open_pair(str(made.student), resolve(str(made.teacher)))
    model = tiny_model("llama", kv_heads=1)
    total = sum(p.numel() for p in model.parameters())
    attention = sum(p.numel() for name, p in model.named_parameters() if "self_attn" in name)
    sizes = ParameterCounts.of(pair, Settings(tokens=1))
    assert (sizes.student, sizes.trained, sizes.apart) == (total, total, 0)
    assert sizes.teacher == sum(p.numel() for p in tiny_model("llama").parameters())
    assert ParameterCounts.of(pair, Settings(tokens=1, train="attention")).trained == attention
    lora = ParameterCounts.of(pair, Settings(tokens=1, lora_rank=2))
    assert lora.trained == 2 * 2 * (64 + 64 + 2 * (64 + 8) + 64 + 64)
    assert lora.apart == attention


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    own, inner = tmp_path / "self", tmp_path / "root/a/b"
    inner.mkdir(parents=True)
    own.write_text("0::/a/b\n")
    for folder, limit in ((inner, "max"), (inner.parent, "1000")):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert cgroup_room(tmp_path / "root", own) == [450]
    old = tmp_path / "root/memory/c"
    old.mkdir(parents=True)
    own.write_text("3:cpu:/c\n2:memory:/c\n")
    for name, text in (("limit_in_bytes", "900"), ("usage_in_bytes", "500"), ("stat", "total_inactive_file 100")):
        (old / f"memory.{name}").write_text(text)
    assert cgroup_room(tmp_path / "root", own) == [500]
    assert cgroup_room(tmp_path / "root", tmp_path / "nothing") == []
    assert free_memory(torch.device("cpu")) > 0


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 10**9)
    alone = planning.Room.of(torch.device("cpu"), None).free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert planning.Room.of(torch.device("cpu"), None).free == alone // 2


# --- blocks that gain little


def test_blocks_that_gain_little_leave_their_tokens_to_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path / "made")
    monkeypatch.setattr(layerwise, "_TRIED", 1)
    monkeypatch.setattr(layerwise, "_ENOUGH", 2.0)  # more than there is to gain
    short = made.heal("short", lr=1e-3)
    told = [record for record in made.records("short") if "stopped" in record]
    assert len([record for record in made.records("short") if "after" in record]) == len(told) == 1
    assert "ends after 1 of 2 blocks" in told[0]["stopped"]
    assert told[0]["stopped"] in short.warnings
    asked = made.heal("asked", lr=1e-3, layer_share=0.5)
    assert len([record for record in made.records("asked") if "after" in record]) == 2
    assert short.steps > asked.steps
    assert short.tokens <= 24 * 16
    monkeypatch.setattr(layerwise, "_ENOUGH", 0.0)
    assert made.heal("enough", lr=1e-3).steps == asked.steps


def test_sizes_and_shares_as_typed() -> None:
    assert Size().convert("4G", None, None) == Size().convert("4000MB", None, None) == 4 * 10**9
    assert ShareOrAuto().convert("auto", None, None) is None
    assert ShareOrAuto().convert("1/4", None, None) == 0.25
    with pytest.raises(click.BadParameter, match="no size in bytes"):
        Size().convert("much", None, None)


_FREED = """
import sys, psutil, torch
from convert_attn.convert.heap import return_large_blocks
done = return_large_blocks() if sys.argv[1] == "yes" else True
del_first = torch.ones(7 * 2**20); del del_first  # 28 MB: from here on glibc keeps smaller blocks in its heap
own = psutil.Process()
before, large, small = own.memory_info().rss, [], []
for _ in range(20):
    large.append(torch.ones(3 * 2**20)); small.append(torch.ones(2**17))  # 512 KB: no earlier hole holds it
large.clear()
print(int(done), own.memory_info().rss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc")
def test_large_blocks_that_are_freed_are_given_back() -> None:
    kept = {}
    for asked in ("yes", "no"):
        line = [sys.executable, "-c", _FREED, asked]
        done, kept[asked] = map(int, subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())
        if not done:
            pytest.skip("another C library")
    assert kept["yes"] < 20e6 < kept["no"]
