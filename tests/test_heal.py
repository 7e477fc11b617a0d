"""Healing: what is exact first (resume, processes, untouched tensors, lossless students), for every target found."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Command, config_of, edit_config, tensors_of
from safetensors.torch import save_file
from tiny import HEADS, KINDS, SIZES, load, logits_of, tiny_model
from torch.nn import functional as F

from convert_attn import ConvertAttnError, UsageError, convert, heal
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.checkpoint.resolve import resolve
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.heal.data.texts import Texts
from convert_attn.convert.heal.data.tokens import open_text, pack, window_length
from convert_attn.convert.heal.loss.objective import divergence, hidden_error, next_token_loss, next_tokens
from convert_attn.convert.heal.state.journal import Journal, curves, hidden, read
from convert_attn.convert.heal.state.pair import learns, load_model, open_pair, share_frozen
from convert_attn.convert.heal.state.schedule import Schedule
from convert_attn.convert.heal.state.settings import Settings
from convert_attn.convert.heal.training.layerwise import Layerwise, relative_error
from convert_attn.convert.streaming.skeleton import Skeleton
from convert_attn.convert.targets import fitting

LENGTH, WINDOWS = 16, 40
FAST: dict[str, Any] = {
    "tokens": LENGTH * 24,
    "batch_size": 4,
    "seq_len": LENGTH,
    "selection_tokens": LENGTH * 4,
    "cpu": True,
}
_SIZES = Geometry(
    hidden_size=SIZES["hidden_size"],
    num_layers=2,
    num_heads=HEADS,
    num_kv_heads=HEADS,
    head_dim=SIZES["hidden_size"] // HEADS,
    context=SIZES["max_position_embeddings"],
)
_FORMS: dict[str, tuple[Form, dict[str, Any]]] = {
    "gqa": (SharedHeads.of(2, 2), {"to": "gqa", "groups": 2}),
    "mqa": (SharedHeads.of(1, 2), {"to": "mqa"}),
    "mla": (LatentCache.of(16, 8, 2), {"to": "mla", "rank": 16, "rope_dim": 8}),
}


def _kinds() -> list[Any]:
    """One family of each kind with every target that holds it."""
    found = []
    for model_type, (name, (form, options)) in itertools.product(KINDS, _FORMS.items()):
        arch = architectures()[model_type]
        if arch.position != "rope" and name == "mla":
            form, options = LatentCache.of(16, 0, 2), {"to": "mla", "rank": 16}
        for target in fitting(arch, _SIZES, form):
            found.append(
                pytest.param(model_type, options | {"layout": target.layout}, id=f"{model_type}-{name}-{target.name}")
            )
    return found


def _tokens(folder: Path, count: int = WINDOWS, length: int = LENGTH) -> Path:
    drawn = np.random.default_rng(0).integers(1, SIZES["vocab_size"], (count, length))
    np.save(folder / "tokens.npy", drawn)
    return folder / "tokens.npy"


class Made:
    """A tiny original, its conversion and text."""

    def __init__(self, folder: Path, model_type: str = "llama", **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.teacher, self.student = folder, folder / "in", folder / "student"
        tiny_model(model_type).save_pretrained(self.teacher)
        convert(self.teacher, output=self.student, **(options or {"to": "mqa", "method": "mean"}))
        self.data = _tokens(folder)

    def heal(self, name: str = "out", **options: Any) -> Any:
        options = FAST | {"data": self.data} | options
        return heal(self.student, teacher=self.teacher, output=self.folder / name, **options)

    def records(self, name: str = "out") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name / "heal.jsonl").read_text().splitlines()]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "made")


# --- the parts


def test_rate_rises_then_falls_to_zero() -> None:
    rates = [Schedule(10, 2, 1.0).at(step) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, pytest.approx(8 / 9)]
    assert all(a > b for a, b in itertools.pairwise(rates[1:]))
    assert 0 < rates[-1] < 0.2
    assert Schedule.of(1, 0.1, 1.0).at(0) == 1.0


@pytest.mark.parametrize(
    ("tokens", "length", "processes", "windows"),
    [(10**9, 512, 1, 8), (10**9, 128, 1, 32), (10**9, 2048, 3, 9), (256_000, 512, 1, 2), (1000, 512, 2, 2)],
)
def test_runs_over_few_tokens_take_small_steps(tokens: int, length: int, processes: int, windows: int) -> None:
    settings = Settings(tokens=tokens).resolved(length, processes)
    assert settings.windows_per_step == windows
    assert settings.shares(processes)[0] * processes == windows
    assert settings.resolved(length, processes + 1) == settings
    assert Settings(tokens=tokens, batch_size=5).resolved(length, processes).windows_per_step == 5


def test_steps_are_shorter_near_the_original_and_where_they_are_small() -> None:
    full, small = (Settings(tokens=tokens).resolved(512, 1) for tokens in (10**9, 256_000))
    far = full.rate(256, 512, 0.2)
    assert far == full.rate(256, 512, 3.0) == 2 * full.rate(512, 512, 0.2)
    assert full.rate(256, 512, 0.05) == far / 2
    assert small.rate(256, 512, 0.2) == far / 2  # a quarter of the windows
    assert Settings(tokens=1, lr=0.3).resolved(512, 1).rate(256, 512, 0.0) == 0.3
    assert Settings(tokens=10**9, lm_weight=1.0).resolved(512, 1).rate(256, 512, 0.0) == far


def test_a_journal_goes_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path, told = tmp_path / "heal.jsonl", [{"stage": "layerwise", "step": 0, "before": 0.1, "after": 0.05}]
    path.write_text(json.dumps(told[0]) + '\n{"stage": "layerw')
    told.append({"stage": "layerwise", "step": 1, "before": 0.2, "after": 0.1})
    journal = Journal(path, hidden)
    journal.complete(told)
    journal.complete(told)
    assert read(path) == told
    assert path.read_text().count("\n") == 2
    Journal(None, hidden).complete(told)


def test_divergence_is_kl_at_the_temperature_times_its_square() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 7)
    for temperature in (1.0, 2.0):
        p, q = (a / temperature).softmax(-1), (b / temperature).softmax(-1)
        expected = (p * (p / q).log()).sum() * temperature**2
        torch.testing.assert_close(divergence(a, b, temperature), expected)
    assert float(divergence(a, a)) == 0.0


def test_losses_are_the_models_own_and_zero_for_equals() -> None:
    model = tiny_model("gpt2")
    tokens = torch.randint(1, 97, (2, 9))
    with torch.no_grad():
        out = model(input_ids=tokens, labels=tokens, output_hidden_states=True)
    total = next_token_loss(out.logits.flatten(0, 1), next_tokens(tokens))
    torch.testing.assert_close(total / 16, out.loss)
    assert float(hidden_error(out.hidden_states, out.hidden_states)) == 0.0
    double = tuple(2 * state for state in out.hidden_states)
    torch.testing.assert_close(hidden_error(double, out.hidden_states), torch.tensor(1.0))


def test_windows_to_train_on_and_to_choose_on_are_disjoint_and_whole(tmp_path: Path) -> None:
    data = _tokens(tmp_path)
    pack(Texts.of(data, None, None), tmp_path, name="tiny", length=LENGTH, tokens=10**6, place=tmp_path)
    text = open_text(tmp_path, 5 * LENGTH, vocabulary=97, name="tiny", seed=3)
    given = {tuple(row) for row in np.load(data).tolist()}
    chosen = {tuple(row) for row in text.selection.tolist()}
    trained = {tuple(row) for row in text.batch(0, WINDOWS - 5).tolist()}
    assert len(chosen) == 5
    assert not chosen & trained
    assert chosen | trained == given
    again = text.batch(WINDOWS - 5, WINDOWS - 5)
    assert {tuple(row) for row in again.tolist()} == trained
    assert again.tolist() != text.batch(0, WINDOWS - 5).tolist()
    assert (
        open_text(tmp_path, 5 * LENGTH, vocabulary=97, name="tiny", seed=4).selection.tolist()
        != text.selection.tolist()
    )


def test_several_texts_come_in_their_shares_and_each_in_its_own_rounds(tmp_path: Path) -> None:
    few, many = np.full((12, LENGTH), 5), np.arange(40 * LENGTH).reshape(40, LENGTH) % 50 + 6
    few[:, 0] = np.arange(12) + 60
    for name, windows in (("few", few), ("many", many)):
        np.save(tmp_path / f"{name}.npy", windows)
    specs = [str(tmp_path / "few.npy"), str(tmp_path / "many.npy")]
    assert window_length(specs, 2 * LENGTH) == LENGTH
    assert window_length(["sample"], LENGTH // 2) == LENGTH // 2
    pack(Texts.of(specs, (1, 3), None), tmp_path, name="tiny", length=LENGTH, tokens=10**6, place=tmp_path)
    text = open_text(tmp_path, 8 * LENGTH, vocabulary=97, name="tiny", seed=0, weights=(1, 3))
    assert text.length == LENGTH
    assert sum(int(row[1]) == 5 for row in text.selection) == 2  # of 8, a quarter
    batch = text.batch(0, 80)
    own = [int(row[1]) == 5 for row in batch]
    assert all(sum(own[start : start + 4]) == 1 for start in range(0, 80, 4))
    mine = [int(row[0]) for row in batch[own]]
    assert sorted(mine[:10]) == sorted(mine[10:]) == sorted(set(mine))
    assert mine[:10] != mine[10:]
    others = {tuple(row.tolist()) for row in batch[[not is_own for is_own in own]]}
    assert others <= {tuple(row) for row in many.tolist()}
    # wherever a batch begins, and whoever asks for it
    assert torch.equal(torch.cat([text.batch(0, 13), text.batch(13, 67)]), batch)
    assert text.rounds(80 * LENGTH) == (2.0, 60 / 34)


def test_what_one_text_has_to_choose_on_is_not_trained_on_in_another(tmp_path: Path) -> None:
    drawn = np.random.default_rng(1).integers(1, 97, (50, 128))
    for name, windows in (("few", drawn[:10]), ("all", drawn)):
        np.save(tmp_path / f"{name}.npy", windows)
    texts = Texts.of([tmp_path / "few.npy", tmp_path / "all.npy"], None, None)
    pack(texts, tmp_path, name="t", length=128, tokens=10**6, place=tmp_path)
    text = open_text(tmp_path, 8 * 128, vocabulary=97, name="t", seed=0, weights=(1, 1))
    chosen = {tuple(row) for row in text.selection.tolist()}
    for part in text.parts:
        assert not chosen & {tuple(row) for row in part.windows[part.order].tolist()}
    assert sum(len(part.order) for part in text.parts) >= 60 - 2 * len(chosen)


@pytest.mark.parametrize("weights", [(1,), (0, 1), (1, 1, 1)])
def test_weights_that_are_not_those_of_the_texts_are_refused(weights: tuple[int, ...], tmp_path: Path) -> None:
    data = str(_tokens(tmp_path))
    with pytest.raises(UsageError, match=r"--data-weights is .* for 2 --data"):
        Texts.of([data, data], weights, None)


def test_one_text_with_a_weight_is_that_text(made: Made) -> None:
    one, same = made.heal("one"), made.heal("same", data=[made.data], data_weights=(3,))
    assert all(torch.equal(tensor, tensors_of(same.output)[name]) for name, tensor in tensors_of(one.output).items())


def test_what_is_in_the_test_text_too_is_left_out(tmp_path: Path) -> None:
    drawn = np.random.default_rng(1).integers(1, 97, (20, 128))
    test = np.random.default_rng(2).integers(1, 97, (3, 128))
    drawn[4, 20:90] = test[1, 33:103]  # 70 in a row
    drawn[7] = test[2]
    drawn[9, :20] = test[0, :20]  # too few
    np.save(tmp_path / "data.npy", drawn)
    np.save(tmp_path / "test.npy", test)
    left_out = pack(
        Texts.of(tmp_path / "data.npy", None, tmp_path / "test.npy"),
        tmp_path,
        name="tiny",
        length=128,
        tokens=10**6,
        place=tmp_path,
    )
    text = open_text(tmp_path, 128, vocabulary=97, name="tiny", seed=0)
    assert left_out == 2
    assert text.parts[0].windows.tolist() == [row for number, row in enumerate(drawn.tolist()) if number not in (4, 7)]


def test_documents_are_packed_end_to_end(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"def f{number}(): return {number}"}) for number in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    origin = resolve("sample:gpt2")
    pack(
        Texts.of(tmp_path / "text.jsonl", None, None),
        origin.folder,
        name="sample",
        length=32,
        tokens=10**6,
        place=tmp_path,
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(origin.folder)
    expected: list[int] = []
    for line in lines:
        expected += [*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]
    text = open_text(tmp_path, 32, vocabulary=10**6, name="sample", seed=0)
    assert text.parts[0].windows.flatten().tolist() == expected[: len(expected) // 32 * 32]


@pytest.mark.parametrize(("model_type", "options"), _kinds())
def test_blocks_one_by_one_are_the_model(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = Made(tmp_path / "made", model_type, **options)
    for folder in (made.teacher, made.student):
        model = load(folder)
        tokens = torch.randint(1, 97, (2, LENGTH))
        with torch.no_grad():
            states = model(input_ids=tokens, output_hidden_states=True).hidden_states
            skeleton = Skeleton(Source.open(resolve(str(folder))), attention="sdpa")
            torch.testing.assert_close(next(skeleton.embed([tokens])), states[0])
            calls = skeleton.calls(tokens)
            for layer in range(len(skeleton.blocks) - 1):  # the last one's output is followed by the norm
                names = skeleton.names(lambda name, stem=f"{skeleton.stem}{layer}.": name.startswith(stem))
                skeleton.fill(names)
                out = skeleton.blocks[layer](states[layer], *calls[layer].args, **calls[layer].kwargs)
                out = out[0] if isinstance(out, tuple) else out
                torch.testing.assert_close(out, states[layer + 1], atol=1e-5, rtol=1e-5)
                skeleton.empty(names)


# --- whole runs


@pytest.mark.parametrize(("model_type", "options"), _kinds())
def test_every_target_heals_in_its_own_class(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = Made(tmp_path / "made", model_type, **options)
    done = made.heal(train="attention", lr=1e-3, layer_share=0.5)
    before, after = tensors_of(made.student), tensors_of(done.output)
    assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in after.items()}
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert bool(changed) != any("made nothing better" in warning for warning in done.warnings)
    assert all(learns(name, "attention") for name in changed)
    old, new = config_of(made.student), config_of(done.output)
    heals = new["convert_attn"].pop("heal")
    assert old == new
    assert [entry["stages"] for entry in heals] == [["layerwise", "distill"]]
    assert done.best <= done.start
    # the figure that is reported is that of the checkpoint that was written
    assert _selection_kl(made, done.output) == pytest.approx(done.best, rel=1e-4)


def _selection_kl(made: Made, folder: Path) -> float:
    """KL to the original on the windows that a run chooses on."""
    place = made.folder / "again"
    place.mkdir()
    pack(
        Texts.of(made.data, None, None),
        made.student,
        name="tiny",
        length=LENGTH,
        tokens=FAST["tokens"],
        place=place,
    )
    tokens = open_text(place, FAST["selection_tokens"], vocabulary=SIZES["vocab_size"], name="tiny", seed=0).selection
    with torch.no_grad():
        theirs, ours = (load(f)(tokens).logits.flatten(0, 1) for f in (made.teacher, folder))
        return float(divergence(theirs, ours)) / tokens.numel()


def test_patience_ends_a_run_that_gets_no_better(made: Made) -> None:
    options = {"stages": ("distill",), "lr": 0.2, "batch_size": 2, "eval_every": 1}
    short = made.heal("short", patience=2, **options)
    assert short.steps < FAST["tokens"] // (2 * LENGTH)
    values = [r["selection"] for r in made.records("short") if "selection" in r and r["stage"] == "distill"]
    assert min(values[1:]) == values[-3] <= min(values[-2:])


def test_a_student_that_lost_nothing_stays_as_it_is(tmp_path: Path) -> None:
    made = Made(tmp_path / "made", "llama", to="gqa", groups=HEADS)
    done = made.heal(lr=1e-3)
    assert done.start == pytest.approx(0, abs=1e-6)
    after = tensors_of(done.output)
    assert all(torch.equal(tensor, after[name]) for name, tensor in tensors_of(made.student).items())
    assert any("made nothing better" in warning for warning in done.warnings)


def test_a_token_with_a_giant_state_counts_no_more_than_others() -> None:
    """The first token's state is a hundred times as large as others in many models."""
    wanted = torch.randn(1, 4, 8)
    off = wanted + 0.1 * torch.randn(1, 4, 8)
    before = relative_error(off, wanted)
    for states in (wanted, off):
        states[:, 0] *= 1000
    torch.testing.assert_close(relative_error(off, wanted), before)
    assert float(relative_error(100 * wanted, torch.zeros_like(wanted)).max()) <= 1.0  # a state gone astray too


def test_layers_of_a_student_healed_before_read_its_own_embeddings(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tensors_of(made.student)
    tensors["model.embed_tokens.weight"] *= 1.5
    save_file(tensors, made.student / "model.safetensors", {"format": "pt"})
    config = config_of(made.student)
    config["convert_attn"]["heal"] = [{}]  # what was trained before differs from the original beyond the attention
    (made.student / "config.json").write_text(json.dumps(config))
    entering: list[torch.Tensor] = []
    settle = Layerwise._settle

    def look(self: Layerwise, layer: int, student: Any, text: Any, selection: Any) -> None:
        if layer == 0:
            entering.extend(states.clone() for states in (selection.own, selection.before))
        settle(self, layer, student, text, selection)

    monkeypatch.setattr(Layerwise, "_settle", look)
    made.heal(stages=("layerwise",))
    own, original = entering
    torch.testing.assert_close(own, 1.5 * original)


def test_blocks_that_read_the_students_states_come_nearer_to_the_original(made: Made) -> None:
    ends = {}
    for inputs in ("student", "original"):
        done = made.heal(f"from-{inputs}", stages=("layerwise",), layer_inputs=inputs, layer_lr=1e-3)
        ends[inputs] = _last_states(made, done.output)
    start = _last_states(made, made.student)
    assert ends["student"] < start
    assert ends["student"] < ends["original"]


def _last_states(made: Made, folder: Path) -> float:
    """Squared distance of the states before the head from the original's, on the text that was trained on."""
    tokens = torch.from_numpy(np.load(made.data))
    with torch.no_grad():
        ours, theirs = (load(f)(tokens, output_hidden_states=True).hidden_states[-1] for f in (folder, made.teacher))
    return float((ours - theirs).square().sum())


def test_uptraining_needs_no_teacher_and_lowers_the_loss(made: Made) -> None:
    data = made.folder / "same.npy"
    np.save(data, np.tile(np.arange(1, LENGTH + 1), (WINDOWS, 1)))
    done = heal(made.student, data=data, output=made.folder / "out", stages=("uptrain",), lr=3e-3, **FAST)
    assert done.best < 0.9 * done.start
    assert done.perplexity == (pytest.approx(math.exp(done.start)), pytest.approx(math.exp(done.best)))
    assert config_of(done.output)["convert_attn"]["heal"][0]["teacher"] is None


@pytest.mark.parametrize("inputs", ["student", "original"])
def test_layers_alone_are_written_without_the_model(inputs: str, made: Made) -> None:
    done = made.heal(stages=("layerwise",), layer_inputs=inputs, layer_lr=3e-3)
    layers = [record for record in made.records() if record["stage"] == "layerwise"]
    assert len(layers) == 2
    assert all(record["after"] < record["before"] for record in layers)
    assert (done.start, done.best, done.steps) == (None, None, 0)
    assert load(done.output).config.num_key_value_heads == 1


def test_what_is_said_of_the_run_is_in_card_config_and_log(made: Made) -> None:
    done = made.heal(lr=3e-3, lm_weight=0.1, hidden_weight=0.1)
    card = (done.output / "README.md").read_text()
    assert not any(words in card for words in ("No training followed", "No quality was measured", "same bytes again"))
    assert "# out\n" in card
    assert 'from_pretrained("./out")' in card
    assert f"{done.start:.4f} | {done.best:.4f}" in card
    assert "![loss](heal.png)" in card
    assert (done.output / "heal.png").stat().st_size > 5000
    figure = curves(made.records())
    assert figure is not None
    assert [(axes.get_title(), axes.get_xlabel()) for axes in figure.axes] == [
        ("distill", "tokens"),
        ("layerwise", "layer"),
    ]
    steps = [record for record in made.records() if "loss" in record]
    assert [record["step"] for record in steps] == [*range(done.steps)]
    assert all(r["loss"] == pytest.approx(r["kl"] + 0.1 * r["hidden"] + 0.1 * r["lm"], rel=1e-5) for r in steps)
    measured = [record for record in made.records() if "selection_kl" in record]
    assert all(r["selection"] == pytest.approx(r["selection_kl"] + 0.1 * r["selection_loss"]) for r in measured)
    assert done.best == min(record["selection"] for record in measured)
    assert config_of(done.output)["convert_attn"]["heal"][0]["selection"] == {"start": done.start, "best": done.best}
    assert not (made.folder / "out.heal").exists()


def test_a_healed_checkpoint_heals_again(made: Made) -> None:
    first = made.heal("first", lr=3e-3)
    again = heal(first.output, teacher=made.teacher, data=made.data, output=made.folder / "again", lr=1e-3, **FAST)
    assert len(config_of(again.output)["convert_attn"]["heal"]) == 2
    assert (again.output / "README.md").read_text().count("## Healed") == 1


def test_lora_changes_the_attention_only_and_is_merged(made: Made) -> None:
    pytest.importorskip("peft")
    done = made.heal(lora_rank=2, lr=1e-2)
    before, after = tensors_of(made.student), tensors_of(done.output)
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert all("self_attn" in name for name in changed)
    assert done.best < done.start


# --- what must not matter


def assert_same(first: Path, second: Path, **tolerance: float) -> None:
    left, right = tensors_of(first), tensors_of(second)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


EXACT = {"atol": 0.0, "rtol": 0.0}
CLOSE = {"atol": 2e-5, "rtol": 1e-3}


@pytest.mark.parametrize("change", [{"micro_batch_size": 1}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_memory_savers_change_nothing_but_rounding(model_type: str, change: dict[str, Any], tmp_path: Path) -> None:
    made = Made(tmp_path / "made", model_type, to="mla", cache_ratio=0.25)
    plain, saving = made.heal("plain"), made.heal("saving", **change)
    assert_same(plain.output, saving.output, **CLOSE)
    assert plain.best == pytest.approx(saving.best, rel=1e-4)


class _StopError(Exception):
    pass


def test_mixed_precision_trains_in_half_and_writes_what_was_there(made: Made) -> None:
    done = made.heal(mixed_precision="bf16", lr=1e-3)
    assert done.best < done.start
    assert {t.dtype for t in tensors_of(done.output).values()} == {torch.float32}
    plain = made.heal("plain", lr=1e-3)
    assert done.best == pytest.approx(plain.best, rel=0.05)
    assert done.best != plain.best
    # nothing that is trained has been rounded on the way: what no step has moved is as it was
    kept = made.heal("kept", mixed_precision="bf16", lr=1e-12, stages=("distill",))
    for name, tensor in tensors_of(made.student).items():
        torch.testing.assert_close(tensors_of(kept.output)[name], tensor, atol=1e-9, rtol=1e-6)


def test_tensorboard_gets_the_figures_of_the_log(made: Made) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made.heal(tensorboard=made.folder / "board", lr=1e-3)
    board = events.EventAccumulator(str(made.folder / "board")).Reload()
    shown = [event.value for event in board.Scalars("distill/loss")]
    assert shown == pytest.approx([record["loss"] for record in made.records() if "loss" in record])


def test_overwrite_begins_an_unfinished_run_anew(made: Made) -> None:
    def stop(record: dict[str, Any]) -> None:
        raise _StopError

    with pytest.raises(_StopError):
        made.heal(lr=2e-3, show=stop)
    assert made.heal(lr=1e-3, overwrite=True).best == made.heal("other", lr=1e-3).best


def test_the_same_run_gives_the_same_bytes(made: Made) -> None:
    assert_same(made.heal("one").output, made.heal("two").output, **EXACT)


@pytest.mark.parametrize("stage", ["layerwise", "distill"])
def test_resumed_runs_end_bit_for_bit_where_whole_ones_do(stage: str, made: Made) -> None:
    whole = made.heal("whole", lr=1e-3)

    def stop(record: dict[str, Any]) -> None:
        if (
            record["stage"] == stage
            and record["step"] == (0 if stage == "layerwise" else 1)
            and "selection" not in record
        ):
            raise _StopError

    with pytest.raises(_StopError):
        made.heal("broken", lr=1e-3, show=stop)
    assert not (made.folder / "broken").exists()
    with pytest.raises(UsageError, match="unfinished run"):
        made.heal("broken", lr=1e-3)
    with pytest.raises(UsageError, match="--lr"):
        made.heal("broken", lr=2e-3, resume=True)
    resumed = made.heal("broken", lr=1e-3, resume=True)
    assert_same(whole.output, resumed.output, **EXACT)

    def figures(name: str) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in record.items() if key not in ("tokens_per_second", "seconds")}
            for record in made.records(name)
        ]

    assert figures("whole") == figures("broken")


SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def _launch(words: list[str | Path], sharded: bool) -> subprocess.CompletedProcess[str]:
    """A command line on two processes: under `accelerate launch`, which has no FSDP on a CPU, or under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if sharded:
        launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
        environment |= SHARDED | {"ACCELERATE_USE_CPU": "true"}
    else:
        launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", port]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    line = [sys.executable, "-m", *launcher, "-m", "convert_attn.convert.cli", "heal", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)


def _words(made: Made, name: str) -> list[str | Path]:
    return [
        *(made.student, "--teacher", made.teacher, "--data", made.data, "--output", made.folder / name, "--cpu"),
        *("--tokens", str(FAST["tokens"]), "--batch-size", "4", "--seq-len", str(LENGTH)),
        *("--selection-tokens", str(FAST["selection_tokens"]), "--lr", "1e-3"),
    ]


@pytest.mark.parametrize("inputs", ["student", "original"])
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "fully sharded"])
def test_two_processes_make_what_one_makes(sharded: bool, inputs: str, made: Made) -> None:
    one = made.heal("one", lr=1e-3, layer_inputs=inputs)
    ended = _launch([*_words(made, "two"), "--layer-inputs", inputs], sharded)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert_same(one.output, made.folder / "two", **CLOSE)
    losses = [[r["loss"] for r in made.records(name) if "loss" in r] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    layers = [sorted(r["step"] for r in made.records(name) if "after" in r) for name in ("one", "two")]
    assert layers == [[0, 1], [0, 1]]


def test_frozen_weights_are_shared_and_change_no_logits(made: Made) -> None:
    pair = open_pair(str(made.student), resolve(str(made.teacher)))
    assert pair.teacher is not None
    teacher, student = (load_model(source, torch.float32) for source in (pair.teacher, pair.student))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(learns(name, "attention"))
    before = logits_of(student)
    saved = share_frozen(student, teacher)
    frozen = sum(p.nbytes for name, p in student.named_parameters() if not learns(name, "attention"))
    assert saved == frozen > 0
    assert torch.equal(logits_of(student), before)
    assert student.model.embed_tokens.weight is teacher.model.embed_tokens.weight


# --- bad input


BAD: dict[str, tuple[Callable[[Made], dict[str, Any]], type[Exception], str]] = {
    "no tokens": (lambda made: {"tokens": 0}, UsageError, "--tokens is 0, expected at least 1"),
    "rate": (lambda made: {"lr": 0.0}, UsageError, "--lr is 0.0, expected a number above 0"),
    "stages": (lambda made: {"stages": ("distill", "layerwise")}, UsageError, "layerwise comes first"),
    "both": (lambda made: {"stages": ("distill", "uptrain")}, UsageError, "layerwise, then distill or uptrain"),
    "window": (lambda made: {"seq_len": 65}, UsageError, "--seq-len is 65, the model reads at most 64"),
    "batch": (lambda made: {"micro_batch_size": 3}, UsageError, "give a divisor"),
    "output": (lambda made: {"output": made.student}, UsageError, "exists; give --overwrite"),
    "resume": (lambda made: {"resume": True}, UsageError, "no unfinished run"),
    "no text": (lambda made: {"data": "nowhere.txt"}, UsageError, "is not there"),
    "self": (lambda made: {"data": "self"}, UsageError, "is no teacher"),
    "short": (lambda made: {"data": _tokens(made.folder, 1)}, ConvertAttnError, "gives 1 windows"),
    "diverges": (lambda made: {"lr": 30.0, "stages": ("distill",)}, ConvertAttnError, "diverges|nan"),
    "tokenizer": (lambda made: {"data": "sample"}, ConvertAttnError, "no tokenizer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_sentence(case: str, made: Made) -> None:
    options, kind, words = BAD[case][0](made), BAD[case][1], BAD[case][2]
    before = tensors_of(made.student)
    with pytest.raises(kind, match=words):
        heal(
            made.student,
            **({"teacher": made.teacher, "data": made.data, "output": made.folder / "out"} | FAST | options),
        )
    assert not (made.folder / "out").exists()
    assert (made.folder / "out.heal").exists() == (case == "diverges")  # what was begun can be gone on with
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(made.student).items())


def test_a_teacher_that_is_not_the_source_is_refused(made: Made) -> None:
    tiny_model("llama", seed=1).save_pretrained(made.folder / "other")
    tiny_model("llama", hidden_size=128).save_pretrained(made.folder / "wider")
    for name, words in (("other", "has other numbers"), ("wider", "other names, shapes or dtypes")):
        with pytest.raises(UsageError, match=words):
            heal(made.student, teacher=made.folder / name, data=made.data, output=made.folder / "out", **FAST)
    with pytest.raises(UsageError, match="give it as --teacher"):
        heal(made.student, data=made.data, output=made.folder / "out", **FAST)
    with pytest.raises(UsageError, match="no folder that convert-attn made"):
        heal(made.teacher, teacher=made.teacher, data=made.data, output=made.folder / "out", **FAST)


def test_tokens_of_another_model_are_refused(made: Made) -> None:
    np.save(made.folder / "tokens.npy", np.full((WINDOWS, LENGTH), 97))
    with pytest.raises(ConvertAttnError, match=r"token id 97 but .* knows 0 to 96"):
        made.heal()


def test_different_tokenizers_are_refused(tmp_path: Path) -> None:
    convert("sample:gpt2", to="mqa", method="mean", output=tmp_path / "student")
    tokenizer = json.loads((tmp_path / "student/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "student/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConvertAttnError, match="different tokenizers"):
        heal(tmp_path / "student", data="sample", output=tmp_path / "out", tokens=1000)


def test_a_loss_that_is_not_a_number_ends_the_run(made: Made) -> None:
    settings = {"stages": ("uptrain",), "lr": 1e30, "max_grad_norm": 1e30, "eval_every": 100}
    with pytest.raises(ConvertAttnError, match=r"the loss is (nan|inf) at step \d|diverges"):
        made.heal(**settings)


def test_options_as_typed(made: Made, command: Command) -> None:
    ended = command("heal", *_words(made, "out"), "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["steps"] > 0
    assert Path(found["output"]) == made.folder / "out"
    for options, words in (
        (("--tokens", "many"), "'many' is no number of tokens"),
        (("--tokens", "1K", "--data-weights", "3,x"), "'3,x' is no list of whole numbers such as 3,1"),
    ):
        bad = command("heal", made.student, "--data", made.data, *options)
        assert bad.code == 2
        assert words in bad.err


def test_settings_name_what_changed() -> None:
    settings = Settings(tokens=100)
    assert settings.differences(Settings(tokens=100, save_every=3).as_dict()) == []
    assert settings.differences(Settings(tokens=200, lr=1.0).as_dict()) == ["--tokens", "--lr"]


def test_a_classifier_is_refused(made: Made) -> None:
    edit_config(made.student, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UsageError, match="heal trains language models, encoders, and"):
        made.heal()


def test_next_token_loss_ignores_the_first_token() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 0, 2] = 4.0
    tokens = torch.tensor([[1, 2, 3]])
    expected = F.cross_entropy(logits[0, :2], tokens[0, 1:])
    torch.testing.assert_close(next_token_loss(logits[0], next_tokens(tokens)) / 2, expected)
