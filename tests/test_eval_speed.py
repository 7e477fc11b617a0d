"""Timing, cache bytes and models at scale: what is measured is what is there. Nothing here depends on a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_tiny
from tiny import OWN, tiny_model
from transformers import Cache

import convert_attn
from convert_attn import ConvertAttnError, UsageError
from convert_attn.convert.errors import ConvertAttnError as Failure
from convert_attn.convert.isolated.behaviour import attention_modules
from convert_attn.eval.measures import contenders, speed
from convert_attn.eval.measures.contenders import check_memory, open_contenders, predicted_numbers
from convert_attn.eval.measures.memory import cache_bytes_per_token, peak_memory
from convert_attn.eval.measures.scale import SHAPES, at_scale, scale_shape
from convert_attn.eval.measures.speed import AttentionClock, compare_speed


def _ignore(done: int, total: int) -> None:
    """No progress."""


def _conversions(source: Path, folder: Path) -> list[Path]:
    """Every kind of result that this source can become."""
    made = []
    for name, request in {
        "gqa": {"to": "gqa", "groups": 2},
        "mqa": {"to": "mqa"},
        "mqa-custom": {"to": "mqa", "layout": "custom"},
        "mla": {"to": "mla", "cache_ratio": 0.25},
        "mla-native": {"to": "mla", "cache_ratio": 0.25, "layout": "native"},
    }.items():
        try:
            convert_attn.convert(source, output=folder / name, **request)  # type: ignore[arg-type]
        except Failure:
            continue
        made.append(folder / name)
    return made


def test_measured_cache_bytes_are_the_predicted_ones(tmp_path: Path, model_type: str) -> None:
    wide = {"sliding_window": 64} if "sliding_window" in OWN.get(model_type, {}) else {}  # of which all is cached
    source = save_tiny(tmp_path / "source", model_type, **wide)
    made = _conversions(source, tmp_path)
    assert len(made) >= 2
    found = open_contenders([str(source), *map(str, made)], "cpu", "float32")
    for contender in found:
        numbers = predicted_numbers(contender.config.to_dict(), contender.name)
        assert numbers is not None
        assert cache_bytes_per_token(contender.recipe.build()) == 4 * numbers, contender.form


def test_decoding_leaves_the_cache_as_it_was(model_type: str) -> None:
    model = tiny_model(model_type)
    tokens = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    runner = speed._Runner(model, tokens)
    with torch.inference_mode():
        timed = runner.decode()
        first: Any = timed.call()
        timed.reset()
        second: Any = timed.call()
        timed.reset()
        whole = model(tokens).logits[:, -1:]
    torch.testing.assert_close(first.logits, second.logits, atol=0, rtol=0)
    torch.testing.assert_close(first.logits, whole, atol=1e-4, rtol=1e-4)
    assert runner._cache.get_seq_length() == 11


def test_attention_time_is_that_of_one_module_per_layer(tmp_path: Path, model_type: str) -> None:
    source = save_tiny(tmp_path / "source", model_type)
    for folder in (source, *_conversions(source, tmp_path)):
        (contender,) = open_contenders([str(folder)], "cpu", "float32")
        model = contender.recipe.build()
        assert len(attention_modules(model)) == 2, contender.form
        clock = AttentionClock(model)
        model(torch.zeros(1, 4, dtype=torch.int64))
        clock.end_call()
        clock.remove()
        model(torch.zeros(1, 4, dtype=torch.int64))
        clock.end_call()
        assert clock.seconds[0] > 0
        assert clock.seconds[1] == 0


def test_a_decode_that_does_not_read_its_cache_is_not_timed() -> None:
    model, broken = tiny_model("llama"), tiny_model("llama")
    forward = broken.model.forward

    def swallow(*args: Any, **kwargs: Any) -> Any:
        kept = {name: value for name, value in kwargs.items() if not isinstance(value, Cache)}
        return forward(*args, **kept)

    broken.model.forward = swallow
    with pytest.raises(ConvertAttnError, match=r"the converted model .* tokens in its cache .* is not timed"):
        compare_speed(model, broken, contexts=(8,), batch_sizes=(1,), repeats=1, advance=_ignore)


def test_speed_figures_agree_with_each_other() -> None:
    """Its figures are consistent: the speed-up is between the bounds, rates follow from times."""
    model = tiny_model("llama")
    rows = compare_speed(model, model, contexts=(8, 16), batch_sizes=(1, 2), repeats=3, advance=_ignore)
    assert [(row["context"], row["batch_size"]) for row in rows] == [(8, 1), (16, 1), (8, 2), (16, 2)]
    for row in rows:
        for what, tokens in (("prefill", row["context"] * row["batch_size"]), ("decode", row["batch_size"])):
            figures, attention = row[what], row[f"{what}_attention"]
            assert figures["speedup"]["low"] <= figures["speedup"]["median"] <= figures["speedup"]["high"]
            for side in ("original", "converted"):
                assert figures[side]["repeats"] == attention[side]["repeats"] == 3
                assert attention[side]["fastest_ms"] > 0
                rate = 1e3 * tokens / figures[side]["median_ms"]
                assert figures["tokens_per_second"][side] == pytest.approx(rate)


def test_a_cache_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "free_bytes", lambda device: 1000)
    model = tiny_model("llama")
    (row,) = compare_speed(model, model, contexts=(16,), batch_sizes=(2,), repeats=1, advance=_ignore)
    assert "the caches need" in row["skipped"]


def test_peak_memory_is_that_of_another_process() -> None:
    (contender,) = open_contenders(["sample:gpt2"], "cpu", "float32")
    found = peak_memory(contender.recipe, 16, 1)
    assert found["peak_bytes"] > found["before_bytes"] > 50e6
    with pytest.raises(ConvertAttnError, match=r"measuring the peak memory of '/none' failed: .*cannot be loaded"):
        peak_memory(replace(contender.recipe, model="/none"), 16, 1)


def test_models_that_do_not_fit_are_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "free_bytes", lambda device: 5_000_000)
    found = open_contenders(["sample:gpt2", "sample:gpt2"], "cpu", "float32")
    sentence = (
        r"'sample:gpt2' and 'sample:gpt2' need about 9.9 MB side by side in float32, and cpu has 5.0 MB free: try"
    )
    with pytest.raises(ConvertAttnError, match=sentence):
        check_memory(found)
    check_memory(open_contenders(["sample:gpt2", "sample:gpt2"], "cpu", "float16"))


# --- models at scale


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_takes_every_kind_of_conversion(name: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "llama")
    made = [folder for folder in _conversions(source, tmp_path) if "gpt2" not in name or "native" not in folder.name]
    found = open_contenders([str(source), *map(str, made)], "cpu", "float32")
    scaled = at_scale(found, f"{name}:1", 256)
    whole = predicted_numbers(scaled[0].config.to_dict(), name)
    before = predicted_numbers(found[0].config.to_dict(), "tiny")
    assert whole is not None
    assert before is not None
    for small, large in zip(found[1:], scaled[1:], strict=True):
        assert large.form[:3] == small.form[:3]
        ours = predicted_numbers(small.config.to_dict(), "tiny")
        theirs = predicted_numbers(large.config.to_dict(), name)
        assert ours is not None
        assert theirs is not None
        if large.form.startswith("MLA"):
            assert theirs / whole == pytest.approx(ours / before, rel=0.05)
        elif large.form != "MQA" and "gpt2-xl" not in name:  # 25 heads
            assert theirs / whole == ours / before


def test_a_scaled_model_runs(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", "gpt2")
    found = open_contenders([str(source), *map(str, _conversions(source, tmp_path))], "cpu", "float32")
    for contender in at_scale(found, "gpt2:1", 2048):
        model = contender.recipe.build()
        assert model.config.num_hidden_layers == 1
        assert contender.context == 2048
        with torch.no_grad():
            logits = model(torch.zeros(1, 4, dtype=torch.int64)).logits
        assert logits.shape == (1, 4, 50257)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gpt5", "--scale 'gpt5' is not known: choose one of gpt2, "),
        ("llama-2-7b:33", "--scale 'llama-2-7b:33' asks for 33 layers: expected 1 to 32"),
        ("llama-2-7b:0", "expected 1 to 32"),
        ("llama-2-7b:x", "asks for x layers"),
    ],
)
def test_unknown_shapes_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        scale_shape(name)
