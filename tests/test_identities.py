"""What must hold exactly, for every architecture x method, found by discovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import HEADS, assert_same_logits, get_attention, load, logits_of, set_attention, tiny_geometry, tiny_model

from convert_attn import convert
from convert_attn.convert.archs import architectures
from convert_attn.convert.methods import methods
from convert_attn.convert.weights.attention import (
    drop_key_bias,
    fold_value_bias,
    map_kv_heads,
    permute_kv_heads,
    replicate_kv_heads,
)
from convert_attn.eval.measures.decoding import cache_of, with_cache

LAYERS = 2
SHARING = [name for name, method in methods().items() if method.share]
FAITHFUL = [name for name in SHARING if name != "random"]  # random heads keep nothing, equal or not


@pytest.mark.parametrize("method", SHARING)
def test_as_many_groups_as_heads_returns_the_tensors_bit_for_bit(model_type: str, method: str, tmp_path: Path) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=HEADS, method=method, output=tmp_path / "out")
    before, after = load_file(tmp_path / "in/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


def keep_places(model: object) -> bool:
    """Whether heads have something that does not travel with them."""
    return tiny_geometry(model)[1].block(0).fixed_order


def _equal_heads(model: object, groups: int, order: list[int], layers: Sequence[int] = range(LAYERS)) -> None:
    """Make the K/V heads of each group equal, in place, the heads then shuffled by `order`."""
    for layer in layers:
        weights = get_attention(model, layer)
        shared = map_kv_heads(weights, lambda heads: heads[:groups])
        set_attention(model, layer, permute_kv_heads(replicate_kv_heads(shared, HEADS), order))


@pytest.mark.parametrize("groups", [2])
@pytest.mark.parametrize("method", FAITHFUL)
def test_heads_that_are_equal_already_convert_without_loss(
    model_type: str, method: str, groups: int, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    # the optimal method must find the groups too; averaging takes neighbours
    order = [5, 0, 3, 6, 1, 7, 2, 4] if method == "subspace" and not keep_places(model) else list(range(HEADS))
    _equal_heads(model, groups, order)
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=groups, method=method, output=tmp_path / "out")
    assert_same_logits(logits_of(load(tmp_path / "out")), logits_of(model))


@pytest.mark.parametrize("to", ["gqa", "mqa"])
@pytest.mark.parametrize("method", SHARING)
def test_loaded_class_equals_the_original_class_with_shared_heads_replicated(
    model_type: str, method: str, to: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "in")
    groups = 2 if to == "gqa" else None
    convert(tmp_path / "in", to=to, groups=groups, method=method, output=tmp_path / "out")
    converted = load(tmp_path / "out")
    for layer in range(LAYERS):
        set_attention(model, layer, replicate_kv_heads(get_attention(converted, layer), HEADS))
    assert_same_logits(logits_of(converted), logits_of(model))


@pytest.mark.parametrize("to", ["gqa", "mqa"])
def test_cached_decode_equals_uncached(model_type: str, to: str, tmp_path: Path) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to=to, groups=2 if to == "gqa" else None, output=tmp_path / "out")
    model = load(tmp_path / "out")
    tokens = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(input_ids=tokens).logits
        out = model(input_ids=tokens[:, :5], use_cache=True)
        pieces = [out.logits]
        for t in range(5, 12):
            out = model(input_ids=tokens[:, t : t + 1], **with_cache(model, cache_of(out)), use_cache=True)
            pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)
    cached = sum(layer.keys.numel() + layer.values.numel() for layer in cache_of(out).layers)
    per_head = 2 * 12 * LAYERS * 2 * model.config.head_dim  # batch x tokens x layers x (K, V)
    assert cached == per_head * model.config.num_key_value_heads


def test_head_permutation_leaves_logits_unchanged(model_type: str) -> None:
    model = tiny_model(model_type)
    if keep_places(model):
        pytest.skip("heads have slopes that stay")
    before = logits_of(model)
    for layer in range(LAYERS):
        set_attention(model, layer, permute_kv_heads(get_attention(model, layer), [3, 1, 7, 0, 6, 2, 5, 4]))
    torch.testing.assert_close(logits_of(model), before, atol=1e-5, rtol=1e-5)


def test_key_bias_drops_without_rotary_position_only(model_type: str) -> None:
    model = tiny_model(model_type)
    before = logits_of(model)
    biased = get_attention(model, 0).k_bias is not None
    for layer in range(LAYERS):
        set_attention(model, layer, drop_key_bias(get_attention(model, layer)))
    rotary = hasattr(model.config, "rope_parameters")
    difference = (logits_of(model) - before).abs().max()
    if biased and rotary:
        assert difference > 1e-3
    else:
        assert difference < 1e-5


def test_value_bias_folds_into_the_output_bias(model_type: str) -> None:
    model = tiny_model(model_type)
    before = logits_of(model)
    for layer in range(LAYERS):
        weights = get_attention(model, layer)
        folded = fold_value_bias(weights)
        if weights.v_bias is not None and weights.o_bias is not None and weights.sinks is None:
            assert folded.v_bias is not None
            assert not folded.v_bias.any()
        set_attention(model, layer, folded)
    torch.testing.assert_close(logits_of(model), before, atol=1e-5, rtol=1e-5)


def test_grouped_source_converts_further(model_type: str, tmp_path: Path) -> None:
    """8 query heads over 4 K/V heads, pairs of them equal: to 2 without loss."""
    if architectures()[model_type].config_kv_heads is None:
        pytest.skip("the class has one K/V head per query head")
    model = tiny_model(model_type, kv_heads=4)
    for layer in range(LAYERS):
        weights = get_attention(model, layer)
        shared = replicate_kv_heads(map_kv_heads(weights, lambda heads: heads[:2]), 4)
        places = [0, 1, 2, 3] if keep_places(model) else [2, 0, 3, 1]
        set_attention(model, layer, permute_kv_heads(shared, places))
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out")
    converted = load(tmp_path / "out")
    assert converted.config.num_key_value_heads == 2
    assert_same_logits(logits_of(converted), logits_of(model))


@pytest.mark.parametrize("method", SHARING)
def test_dead_heads_give_a_finite_result(model_type: str, method: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    for layer in range(LAYERS):
        weights = get_attention(model, layer)
        dead = replace(weights, q=weights.q * 0, v=weights.v * 0)
        dead = map_kv_heads(dead, lambda heads: torch.cat([heads[:1] * 0, heads[1:]]))
        set_attention(model, layer, dead)
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=2, method=method, output=tmp_path / "out")
    assert torch.isfinite(logits_of(load(tmp_path / "out"))).all()
