"""What a block's attention is, family by family: found by making and running its class, and a wrong fact is named."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny import HEADS, load, tiny_geometry, tiny_model
from torch import nn

from convert_attn import convert
from convert_attn.convert.archs import architectures, glm, llama
from convert_attn.convert.archs.block_facts import Added, QueryKeyNorm, Rotary
from convert_attn.convert.classes.class_facts import ClassFacts
from convert_attn.convert.classes.class_facts import _class_facts as class_facts_anew
from convert_attn.convert.classes.norm_facts import norm_facts
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.maths.normed_keys import NormedKeys
from convert_attn.convert.weights.functional import Rule, attention_of
from convert_attn.convert.weights.head_norm import HeadNorm, Slope

RMS = HeadNorm(eps=1e-6)
NORMS = {
    "qwen3": QueryKeyNorm(RMS, "shared"),
    "gemma3_text": QueryKeyNorm(replace(RMS, offset=1.0), "shared"),
    "cohere": QueryKeyNorm(HeadNorm(eps=1e-5, centred=True), "own"),
    "olmo2": QueryKeyNorm(HeadNorm(eps=1e-5, together=True), "flat"),
}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3_text", "cohere", "olmo2", "gpt_oss", "glm"])
def test_norms_caps_and_sinks_are_those_of_the_class(name: str) -> None:
    block = tiny_geometry(tiny_model(name))[1].block(1)
    assert block.norm == NORMS.get(name)
    assert block.softcap == (2.0 if name == "gemma2" else None)
    assert block.sinks == (name == "gpt_oss")


def test_norms_that_the_config_leaves_out_are_not_there() -> None:
    assert tiny_geometry(tiny_model("cohere", use_qk_norm=False))[1].norm is None


@pytest.mark.parametrize(
    ("name", "interleaved"), [("llama", False), ("cohere", True), ("cohere2", True), ("glm", True)]
)
def test_planes_are_those_that_the_class_turns(name: str, interleaved: bool) -> None:
    block = tiny_geometry(tiny_model(name))[1].block(0)
    assert isinstance(block.position, Rotary)
    assert block.position.interleaved == interleaved
    half = len(block.position.inv_freq)
    order = block.head_order().unflatten(0, (2, -1))  # plane p is (order[0, p], order[1, p])
    assert (order[1] - order[0])[:half].tolist() == [1 if interleaved else half] * half
    assert sorted(order.flatten().tolist()) == list(range(block.head_dim))


@pytest.mark.parametrize(
    ("name", "turns"), [("smollm3", [True, False]), ("cohere2", [True, False]), ("llama", [True] * 2)]
)
def test_layers_without_position_are_known(name: str, turns: list[bool]) -> None:
    sizes = tiny_geometry(tiny_model(name))[1]
    assert [sizes.block(layer).turns for layer in range(2)] == turns
    assert (Added("none") in sizes.positions) == (not all(turns))


def test_layers_turn_by_their_own_frequencies() -> None:
    model = tiny_model("gemma3_text")
    sizes = tiny_geometry(model)[1]
    for layer, kind in enumerate(model.config.layer_types):
        position = sizes.block(layer).position
        assert isinstance(position, Rotary)
        theta = model.config.rope_parameters[kind]["rope_theta"]
        wanted = [theta ** (-2 * p / sizes.head_dim) for p in range(sizes.head_dim // 2)]
        assert position.inv_freq == pytest.approx(wanted)


# --- norms


class _Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x**3


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.RMSNorm(8, eps=1e-6), HeadNorm(eps=1e-6)),
        (nn.RMSNorm(8, eps=3e-5), HeadNorm(eps=3e-5)),
        (nn.LayerNorm(8, eps=1e-5, bias=False), HeadNorm(eps=1e-5, centred=True)),
    ],
    ids=str,
)
def test_a_norm_is_known_by_what_it_does(module: nn.Module, expected: HeadNorm) -> None:
    assert norm_facts(module.to("meta"), "norm") == expected


def test_what_is_no_norm_is_refused() -> None:
    with pytest.raises(ConvertAttnError, match="'q_norm' in the attention is a _Cubed, which computes neither"):
        norm_facts(_Cubed(), "q_norm")


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_the_slope_of_a_norm_is_its_derivative(centred: bool, together: bool) -> None:
    norm = HeadNorm(eps=1e-3, centred=centred, together=together, offset=0.5)
    generator = torch.Generator().manual_seed(0)
    states, change, other = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64, generator=generator)
    gain = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    slope = Slope.at(norm, states, gain)
    _, expected = torch.func.jvp(lambda x: norm(x, gain), (states,), (change,))
    torch.testing.assert_close(slope.along(change), expected)
    torch.testing.assert_close((slope.along(change) * other).sum(), (slope.back(other) * change).sum())
    torch.testing.assert_close(slope.rows(slice(1, 3)).along(change[:, :, 1:3]), expected[:, :, 1:3])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_normed_keys_are_measured_behind_their_norm(centred: bool, together: bool) -> None:
    """Tokens of equal size: then typical sizes are every token's."""
    norm = HeadNorm(eps=1e-6, centred=centred, together=together)
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0], [1.0, -1.0, -1.0, 1.0]]).double()
    keys = torch.stack([signs * scale for scale in (1.0, 3.0)])[None]  # [1, n, T, d], every token of one size
    gain = torch.rand(2, 4, dtype=torch.float64, generator=generator)
    gram = torch.einsum("bkta,bltc->kalc", keys, keys) / keys.shape[2]
    found = NormedKeys.of(gram, gain, norm)
    behind = norm(keys, gain)
    torch.testing.assert_close(found.overlap, torch.einsum("bkta,blta->kl", behind, behind) / keys.shape[2])
    assert found.lost((0,)) == pytest.approx(0)
    assert found.shrinkage([(0,), (1,)]) == pytest.approx(1)


# --- scores


def test_scores_stay_within_a_cap_and_a_sink_takes_its_share() -> None:
    scores = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 9
    hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
    rule, sinks = Rule(scale=1.0, softcap=2.0), torch.tensor([0.5, -1.0])
    assert float(rule.capped(scores).abs().max()) <= 2
    capped = (2 * (scores / 2).tanh()).masked_fill(hidden, -torch.inf).exp()
    wanted = capped / (capped.sum(-1, keepdim=True) + sinks.exp()[:, None, None])
    torch.testing.assert_close(attention_of(scores.clone(), rule, hidden=hidden, sinks=sinks), wanted)


# --- wrong facts and refusals


def _with_fact(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **facts: Any) -> None:
    monkeypatch.setattr(module, "ARCHITECTURE", replace(module.ARCHITECTURE, **facts))


@pytest.mark.parametrize(
    ("module", "facts", "words"),
    [
        (llama, {"interleaved": True}, r"the outputs agree if rotary planes are \(p, p \+ half\)"),
        (glm, {"interleaved": False}, r"the outputs agree if rotary planes are \(2 p, 2 p \+ 1\)"),
    ],
    ids=["llama", "glm"],
)
def test_a_wrong_fact_is_found_by_running_the_class(
    module: ModuleType, facts: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(module.ARCHITECTURE.model_type).save_pretrained(tmp_path / "in")
    _with_fact(monkeypatch, module, **facts)
    with pytest.raises(ConvertAttnError, match=words):
        convert(tmp_path / "in", to="mqa", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _uncached(text: str, *where: str) -> ClassFacts:
    return class_facts_anew(json.loads(text), *where)


def test_a_cap_that_was_not_seen_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path / "in")
    reading = importlib.import_module("convert_attn.convert.classes.class_facts")
    look = reading.watch
    monkeypatch.setattr(reading, "watch", lambda *args: replace(look(*args), softcap=None))
    monkeypatch.setattr(reading, "_cached", _uncached)
    with pytest.raises(ConvertAttnError, match="its scores are capped at attn_logit_softcapping 2"):
        convert(tmp_path / "in", to="mqa", output=tmp_path / "out")


def test_keys_of_another_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_fact(monkeypatch, llama, keys_from="cross")
    with pytest.raises(ConvertAttnError, match="keys and values of another text"):
        tiny_geometry(tiny_model("llama"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "minimax_m2",
            "has a norm on each key, behind its projection, which no class with a latent around such blocks has",
        ),
        ("vaultgemma", "caps its scores, which no class with a latent around such blocks has"),
        ("gpt_oss", "has attention sinks, which no class with a latent has"),
        ("phimoe", "no class with a latent has the blocks of phimoe"),
    ],
)
def test_what_no_latent_holds_is_refused_in_a_sentence(name: str, words: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError, match=words):
        convert(tmp_path / "in", to="mla", cache_ratio=0.5, output=tmp_path / "out")


@pytest.mark.parametrize("name", [name for name, arch in architectures().items() if arch.clip])
def test_projections_that_are_cut_off_are_refused(name: str) -> None:
    assert tiny_geometry(tiny_model(name))[1].num_kv_heads == HEADS
    path = architectures()[name].clip
    inside, _, key = path.rpartition(".")
    options: dict[str, Any] = {inside: {key: 8.0}} if inside else {key: 8.0}
    with pytest.raises(
        ConvertAttnError, match=rf"has {re.escape(path)} 8\.0: queries, keys and values that are cut off"
    ):
        tiny_geometry(tiny_model(name, **options))


@pytest.mark.parametrize("name", ["qwen3", "cohere", "olmo2", "gemma3_text", "gemma2", "gpt_oss", "granite", "olmo"])
def test_on_text_the_default_is_better_than_averaging(name: str, tmp_path: Path) -> None:
    windows = torch.randint(0, 97, (64, 48), generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "fit.npy", windows.numpy())
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "in")
    lost = {}
    with torch.no_grad():
        wanted = model(windows[:8]).logits.log_softmax(-1)
        for label, options in {"mean": {"method": "mean"}, "text": {"calibration": str(tmp_path / "fit.npy")}}.items():
            made = convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / label, measure=False, **options)
            ours = load(made.output)(windows[:8]).logits.log_softmax(-1)
            lost[label] = float((wanted.exp() * (wanted - ours)).sum(-1).mean())
    assert lost["text"] < lost["mean"]
