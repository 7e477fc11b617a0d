"""Families whose own class knows no K/V heads, in the subclasses that do: what only some of their configs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import config_of
from tiny import HEADS, assert_same_logits, get_attention, load, logits_of, set_attention, tiny_model

from convert_attn import convert
from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER
from convert_attn.convert.errors import UsageError
from convert_attn.convert.weights.attention import map_kv_heads, replicate_kv_heads

AFTER = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}  # as the one of 350 million parameters
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one block after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "no biases": ("gpt_neox", {"attention_bias": False}),
    "whole heads turn": ("gpt_neox", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}}),
    "norms behind": ("opt", AFTER),
    "no biases anywhere": ("opt", {"enable_bias": False}),
    "a window that shows": ("gpt_neo", {"window_size": 3}),
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


@pytest.mark.parametrize("source", ["gpt_neox", "opt", "gptj", "codegen", "gpt_neo"])
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
