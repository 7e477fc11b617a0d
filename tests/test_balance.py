"""Sizes of weights: symmetries that even them out change nothing, and results fit the dtype they are written in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import tensors_of
from tiny import CONVERTIBLE, HEADS, get_attention, logits_of, set_attention, tiny_geometry, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.methods import methods
from convert_attn.convert.targets import fitting
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.balance import balanced_heads, balanced_latent
from convert_attn.convert.weights.functional import Attention, Rule
from convert_attn.convert.weights.latent import LatentWeights

FORMS: dict[str, dict[str, Any]] = {
    "gqa": {"to": "gqa", "groups": 2},
    "mqa": {"to": "mqa"},
    "custom": {"to": "mla", "layout": "custom", "rank": 24, "rope_dim": 8},
    "native": {"to": "mla", "layout": "native", "rank": 24, "rope_dim": 8},
}


def _options(model_type: str, form: str) -> dict[str, Any]:
    """Of a form that the family can have."""
    arch = architectures()[model_type]
    rotary = arch.position == "rope"
    options = {key: value for key, value in FORMS[form].items() if rotary or key != "rope_dim"}
    if options["to"] == "mla":
        sizes = tiny_geometry(tiny_model(model_type))[1]
        holding = fitting(arch, sizes, LatentCache.of(24, 8 if rotary else 0, layers=2))
        if options["layout"] not in {target.layout for target in holding}:
            pytest.skip("no such class")
    return options


def _uneven(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(-6, 7, shape, generator=torch.Generator().manual_seed(3)).to(torch.float64).exp2()


def _between(first: Tensor, second: Tensor) -> None:
    """Mean squares that differ by no more than the factor of two that powers of two leave to sizes."""
    ratio = (first / second).sqrt()
    assert float(ratio.max()) <= 2.01
    assert float(ratio.min()) >= 1 / 2.01


def _square(rows: Tensor, bias: Tensor | None) -> Tensor:
    total = rows.square().sum(-1)
    return (total if bias is None else total + bias.square()) / rows.shape[-1]


def _unbalanced(weights: AttentionWeights) -> AttentionWeights:
    """The same function, a plane's and a value's numbers multiplied on one side and divided on the other."""
    keys, d, per_kv = weights.num_kv_heads, weights.head_dim, weights.queries_per_kv
    plane, value = _uneven((keys, d // 2)).repeat(1, 2), _uneven((keys, d))
    if weights.k_gain is not None:  # a norm follows, which commutes with no factor
        plane = torch.ones_like(plane)
    by_query, by_output = plane.repeat_interleave(per_kv, 0), value.repeat_interleave(per_kv, 0)
    return replace(
        weights,
        q=weights.q / by_query[..., None],
        q_bias=None if weights.q_bias is None else weights.q_bias / by_query,
        k=weights.k * plane[..., None],
        k_bias=None if weights.k_bias is None else weights.k_bias * plane,
        v=weights.v * value[..., None],
        v_bias=None if weights.v_bias is None else weights.v_bias * value,
        o=weights.o / by_output[:, None],
    )


@pytest.mark.parametrize("kv_heads", [2, HEADS])
def test_balancing_heads_leaves_logits_equal_to_the_last_bit(model_type: str, kv_heads: int) -> None:
    if kv_heads < HEADS and architectures()[model_type].config_kv_heads is None:
        pytest.skip("one K/V head per query head")
    model = tiny_model(model_type, kv_heads=kv_heads)
    before = logits_of(model)
    rotary = tiny_geometry(model)[0].position == "rope"
    for layer in range(2):
        even = balanced_heads(_unbalanced(get_attention(model, layer)), rotary)
        keys, per_kv = even.num_kv_heads, even.queries_per_kv
        query = _square(even.q, even.q_bias).unflatten(0, (keys, per_kv)).mean(1)
        key = _square(even.k, even.k_bias)
        if rotary:  # a factor of a plane is one for both of its numbers
            query, key = (part.unflatten(1, (2, -1)).mean(1) for part in (query, key))
        if even.k_gain is None:
            _between(query, key)
        _between(_square(even.v, even.v_bias), even.o.square().mean(1).unflatten(0, (keys, per_kv)).mean(1))
        set_attention(model, layer, even)
    assert torch.equal(logits_of(model), before)


def _latent(norm: bool, biased: bool) -> LatentWeights:
    """Random, with sizes that differ by many powers of two."""
    heads, d, rotary, rank, hidden = 4, 6, 4, 10, 32

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) / hidden**0.5

    channel, key = _uneven((rank,)).float(), _uneven((heads, d)).float()
    return LatentWeights(
        q_nope=draw(heads, d, hidden) / key[..., None],
        q_rope=draw(heads, rotary, hidden) * 64,
        down=draw(rank, hidden) if norm else draw(rank, hidden) * channel[:, None],
        k_rope=draw(rotary, hidden) / 64,
        up_k=draw(heads, d, rank) * key[..., None] / (1 if norm else channel),
        up_v=draw(heads, d, rank) * 16 / (1 if norm else channel),
        o=draw(heads, hidden, d) / 16,
        inv_freq=torch.tensor([1.0, 0.1]),
        q_nope_bias=draw(heads, d) if biased else None,
        q_rope_bias=draw(heads, rotary) if biased else None,
        k_rope_bias=draw(rotary) if biased else None,
        o_bias=draw(hidden) if biased else None,
        norm=norm,
        power=torch.ones(rank),
    )


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_balancing_a_latent_leaves_its_output_equal_to_the_last_bit(norm: bool, biased: bool) -> None:
    weights = _latent(norm, biased)
    even = balanced_latent(weights)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    before, after = (Attention(w, x, Rule(scale=0.4)).output() for w in (weights, even))
    assert torch.equal(before, after)
    _between(_square(even.q_nope, even.q_nope_bias), even.up_k.square().mean(-1))
    _between(even.up_v.square().mean(-1), even.o.square().mean(1))
    plane = _square(even.k_rope, even.k_rope_bias).unflatten(0, (2, -1)).mean(0)
    _between(plane, _square(even.q_rope, even.q_rope_bias).mean(0).unflatten(0, (2, -1)).mean(0))
    if norm:  # the norm mixes the channels: they stay as they are
        assert torch.equal(even.down, weights.down)
    else:
        readers = (even.up_k.square().mean((0, 1)) + even.up_v.square().mean((0, 1))) / 2
        _between(even.down.square().mean(1), readers)
        assert torch.equal(even.power, (even.down[:, 0] / weights.down[:, 0]).square())  # type: ignore[arg-type]


def test_what_is_zero_stays_and_changes_nothing() -> None:
    weights = get_attention(tiny_model("llama"), 0)
    dead = replace(weights, k=weights.k * 0, o=weights.o * 0)
    even = balanced_heads(dead, True)
    assert torch.equal(even.q, dead.q)
    assert torch.equal(even.v, dead.v)
    assert not even.k.any()
    without_rope = replace(_latent(False, True), q_rope=torch.zeros(4, 0, 32), k_rope=torch.zeros(0, 32))
    without_rope = replace(without_rope, q_rope_bias=None, k_rope_bias=None, inv_freq=torch.zeros(0))
    assert balanced_latent(without_rope).k_rope.shape == (0, 32)


@pytest.mark.parametrize("method", [name for name, method in methods().items() if method.literal])
def test_baselines_stay_what_the_literature_says(method: str, tmp_path: Path) -> None:
    """Queries are the source's own, or turned, but never resized."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="mqa", method=method, output=tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = tensors_of(tmp_path / "in")[name], tensors_of(tmp_path / "out")[name]
    torch.testing.assert_close(before.norm(), after.norm(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", [name for name, method in methods().items() if not method.literal])
def test_weights_stay_as_large_as_the_sources(form: str, method: str, tmp_path: Path) -> None:
    if FORMS[form]["to"] not in methods()[method].targets:
        pytest.skip("not for this method")
    model = tiny_model("llama")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", **FORMS[form], method=method, output=tmp_path / "out")
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    largest = max(float(tensor.abs().max()) for name, tensor in before.items() if "self_attn" in name)
    for name, tensor in after.items():
        if "self_attn" in name and name.endswith("proj.weight"):
            assert float(tensor.abs().max()) < 8 * largest, name


def _run(folder: Path, dtype: torch.dtype) -> Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()).float()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_loses_what_it_loses_in_the_source(
    model_type: str, form: str, dtype: str, tmp_path: Path, slow: bool
) -> None:
    turn = CONVERTIBLE.index(model_type) + [*FORMS].index(form) // 2
    if not slow and (turn % 2 == 0) != (dtype == "bfloat16"):
        pytest.skip("every other one of family x form x dtype: --slow")
    options, kind = _options(model_type, form), getattr(torch, dtype)
    model = tiny_model(model_type, kv_heads=4, num_attention_heads=4, hidden_size=32).to(kind)
    model.save_pretrained(tmp_path / "in")
    exact = _run(tmp_path / "in", torch.float32)
    own = (_run(tmp_path / "in", kind) - exact).square().mean()
    convert(tmp_path / "in", **options, output=tmp_path / "half")
    convert(tmp_path / "in", **options, dtype="float32", output=tmp_path / "full")
    half, full = (
        (_run(tmp_path / name, kind_) - exact).square().mean()
        for name, kind_ in (("half", kind), ("full", torch.float32))
    )
    assert half <= 1.2 * full + 4 * own, (float(half), float(full), float(own))


@pytest.mark.parametrize("gain", [0.005, 1, 50])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_norms_of_deepseek_cost_no_precision_whatever_the_inputs_size(
    model_type: str, dtype: str, gain: float, tmp_path: Path
) -> None:
    """One K/V head of the rotary key's size, so that only rounding is lost; queries with and without a bias."""
    kind = getattr(torch, dtype)
    model = tiny_model(model_type, kv_heads=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "input_layernorm" in name:
                parameter.mul_(gain)
            elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                parameter.div_(gain)
    exact = logits_of(model)
    model.to(kind).save_pretrained(tmp_path / "in")
    own = (_run(tmp_path / "in", kind) - exact).square().mean()
    convert(tmp_path / "in", to="mla", layout="native", rank=64, rope_dim=8, output=tmp_path / "out")
    lost = (_run(tmp_path / "out", kind) - exact).square().mean()
    assert lost <= 4 * own, (float(lost), float(own))
