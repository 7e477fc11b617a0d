"""Families whose own class knows no K/V heads, in the subclasses that do: what only some of their configs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import config_of, tensors_of
from families import CAUSAL, native_type
from tiny import HEADS, assert_same_logits, get_attention, load, logits_of, set_attention, tiny_model

from convert_attn import convert
from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER
from convert_attn.convert.conversion.api import plan
from convert_attn.convert.errors import UsageError
from convert_attn.convert.weights.attention import map_kv_heads, replicate_kv_heads
from convert_attn.eval.measures.decoding import cache_of

AFTER = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}  # as the one of 350 million parameters
LONG = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
    },
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one block after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "no biases": ("gpt_neox", {"attention_bias": False}),
    "whole heads turn": ("gpt_neox", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}}),
    "norms behind": ("opt", AFTER),
    "no biases anywhere": ("opt", {"enable_bias": False}),
    "a window that shows": ("gpt_neo", {"window_size": 3}),
    "slopes of Falcon": ("falcon", {"alibi": True, "bias": True, "parallel_attn": False}),
    "two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": HEADS}),
    "one norm": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": HEADS, "num_ln_in_parallel_attn": 1}),
    "norms are added": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "a scale of its own": ("mpt", {"attn_config": {"softmax_scale": 0.5}}),
    "scores as they are": ("gpt_bigcode", {"scale_attn_weights": False}),
    "queries and keys without norms": ("persimmon", {"qk_layernorm": False}),
    "embeddings as they are": ("xglm", {"scale_embedding": False}),
    "factors for long texts": ("phi3", LONG),
    "local layers first": ("gpt_neo", {"attention_types": [[["local", "global"], 1]], "window_size": 5}),
}


def in_pairs(model: Any, groups: tuple[int, int] = (4, 4)) -> Any:
    """The model with K/V heads that are equal, as many in a row as leave so many of each layer."""
    for layer, kept in enumerate(groups):
        shared = map_kv_heads(get_attention(model, layer), lambda heads, kept=kept: heads[:kept])
        set_attention(model, layer, replicate_kv_heads(shared, HEADS))
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_heads_convert_without_loss(name: str, tmp_path: Path) -> None:
    source, options = VARIANTS[name]
    model = in_pairs(tiny_model(source, **options))
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "out")
    assert_same_logits(logits_of(load(tmp_path / "out")), logits_of(model))


@pytest.mark.parametrize(
    "source",
    [native_type(name) for name in CAUSAL if name.endswith("_gqa")],
)
def test_layers_may_have_numbers_of_their_own(source: str, tmp_path: Path) -> None:
    model = in_pairs(tiny_model(source), (4, 2))
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=(4, 2), output=tmp_path / "out")
    assert config_of(tmp_path / "out")[HEADS_BY_LAYER] == [4, 2]
    found = load(tmp_path / "out")
    assert_same_logits(logits_of(found), logits_of(model))
    ids = torch.arange(3, 12)[None]
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(found.generate(ids, **options), found.generate(ids, **options, use_cache=False))


def test_behind_an_mlp_with_a_norm_nothing_is_solved(tmp_path: Path) -> None:
    tiny_model("opt", **AFTER).save_pretrained(tmp_path / "in")
    with pytest.raises(UsageError, match="--refit mlp solves the projection that ends an MLP, and no single one does"):
        convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "out", refit="mlp")


def test_heads_that_fill_no_four_shards_are_refused(tmp_path: Path) -> None:
    tiny_model("codegen", num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path / "in")
    with pytest.raises(Exception, match="which are not 2 query heads and some K/V heads"):
        convert(tmp_path / "in", to="mqa", output=tmp_path / "out")


@pytest.mark.parametrize(("source", "options"), [("bloom", {}), ("mpt", {}), ("falcon", {"alibi": True})])
def test_slopes_of_a_number_of_heads_that_is_no_power_of_two(
    source: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(source, num_attention_heads=12, hidden_size=96, **options)
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=12, output=tmp_path / "out")
    assert_same_logits(logits_of(load(tmp_path / "out")), logits_of(model))


def cached_heads(model: Any) -> int:
    """How many heads the keys of a model's first layer have in its cache."""
    return int(cache_of(model(torch.arange(3, 12)[None], use_cache=True)).layers[0].keys.shape[1])


LAYOUTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "one a head": ({"multi_query": False}, HEADS, HEADS),
    "one": ({"multi_query": True}, 1, 1),
    "some": ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2, HEADS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_of_falcon_keeps_its_bytes_and_caches_the_heads_that_it_has(name: str, tmp_path: Path) -> None:
    """The class of transformers caches all heads wherever there is more than one."""
    options, heads, stock = LAYOUTS[name]
    model = tiny_model("falcon", **options)
    assert cached_heads(model) == stock
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=heads, layout="custom", output=tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in same_tensors(tmp_path))
    found = load(tmp_path / "out")
    assert cached_heads(found) == heads
    assert_same_logits(logits_of(found), logits_of(model))


def same_tensors(place: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors of source and result, by name."""
    before, after = tensors_of(place / "in"), tensors_of(place / "out")
    assert before.keys() == after.keys()
    return [(before[name], after[name]) for name in before]


def test_falcon_with_a_norm_of_attention_s_own_has_no_native_class_for_one_head(tmp_path: Path) -> None:
    tiny_model("falcon", new_decoder_architecture=True, num_kv_heads=4).save_pretrained(tmp_path / "in")
    assert plan(tmp_path / "in", to="mqa").result_type == "falcon_gqa"
    with pytest.raises(UsageError, match="no native class holds falcon"):
        plan(tmp_path / "in", to="mqa", layout="native")


def test_heads_with_slopes_stay_where_they_are(tmp_path: Path) -> None:
    """Long texts: slopes times places are beyond what bfloat16 tells apart, as Falcon rounds them."""
    model = in_pairs(tiny_model("falcon", alibi=True, max_position_embeddings=1024), (2, 2))
    model.save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", to="gqa", groups=2, output=tmp_path / "out")
    assert_same_logits(logits_of(load(tmp_path / "out"), 600, 1), logits_of(model, 600, 1))


def test_a_bound_on_queries_and_keys_is_refused(tmp_path: Path) -> None:
    tiny_model("mpt", attn_config={"clip_qkv": 6.0}).save_pretrained(tmp_path / "in")
    with pytest.raises(Exception, match=r"has attn_config\.clip_qkv 6\.0: queries, keys and values that are cut off"):
        convert(tmp_path / "in", to="gqa", groups=4, output=tmp_path / "out")
