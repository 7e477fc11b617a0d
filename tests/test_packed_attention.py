"""Attention with the query heads of a group as rows, in classes of ours and of transformers: `convert_attn_packed`."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers
from families import CAUSAL, FIRST_OF_KIND, VOCABULARY, build
from tiny import CONVERTIBLE, tiny_model
from torch import Tensor
from transformers.cache_utils import StaticCache
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capped
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks

from convert_attn.eval.measures.decoding import cache_of, with_cache
from convert_attn.modeling import FAMILIES, PACKED, grouped_attention
from convert_attn.modeling.grouped_attention import packed_attention

WAYS = ["fused", "products"]
LENGTH, PADDED = 14, 3


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of two ways to the same numbers one new token takes, whatever is faster."""
    taken = request.param == "products"
    monkeypatch.setattr(
        grouped_attention, "_products_are_faster", lambda query, key, dropout: taken and query.shape[2] == 1
    )
    return str(request.param)


def close(found: Tensor, expected: Tensor, size: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, atol=size * max(1.0, expected.abs().max().item()), rtol=0)


def padded(vocabulary: int) -> dict[str, Tensor]:
    """Two texts, one of them with padding on the left, and their positions."""
    ids = torch.randint(1, vocabulary, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :PADDED] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def agrees(model: Any, vocabulary: int) -> None:
    """Packed logits are eager ones: in one pass, and with a cache of either kind, token by token, behind padding."""
    batch = padded(vocabulary)
    seen = batch["attention_mask"].bool()
    model.set_attn_implementation("eager")
    expected = model(**batch, use_cache=False).logits
    model.set_attn_implementation(PACKED)
    close(model(**batch, use_cache=False).logits[seen], expected[seen])
    alone = model(batch["input_ids"][1:], use_cache=False).logits
    close(alone[0], expected[1])
    for cache in (None, StaticCache(model.config, LENGTH + 2)):
        begin = LENGTH - 3
        first = {"input_ids": batch["input_ids"][:, :begin], "attention_mask": batch["attention_mask"][:, :begin]}
        out = model(**first, use_cache=True, **({} if cache is None else with_cache(model, cache)))
        held = cache_of(out)
        for place in range(begin, LENGTH):
            mask = batch["attention_mask"][:, : place + 1]
            step = model(
                batch["input_ids"][:, place : place + 1], attention_mask=mask, use_cache=True, **with_cache(model, held)
            )
            close(step.logits[:, 0], expected[:, place])


def test_classes_of_ours_agree_with_eager(slow: bool, way: str) -> None:
    few = FIRST_OF_KIND[WAYS.index(way) :: 2]
    for family in CAUSAL if slow else few:
        model = build(family, attn="eager")
        if model._supports_sdpa:
            agrees(model, VOCABULARY)


def run_packed(config: Any) -> None:
    """Some classes have a table of attention classes of their own, and fail while they are made."""
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    made(torch.arange(3, 9)[None])


def test_classes_of_transformers_agree_with_eager_or_refuse(slow: bool, way: str) -> None:
    for model_type in CONVERTIBLE if slow else CONVERTIBLE[WAYS.index(way) :: 6]:
        model = tiny_model(model_type, 2)
        if model_type in FAMILIES or hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS"):
            agrees(model, 97)
            continue
        with pytest.raises((ValueError, KeyError), match=f"{model_type} computes its attention by itself|^'{PACKED}'$"):
            run_packed(model.config)


class Layer(torch.nn.Module):
    """What attention functions ask of the module that calls them: 8 query heads over 2."""

    is_causal = True
    num_key_value_groups = 4
    head_dim = 8
    scaling = 8**-0.5

    def __init__(self) -> None:
        super().__init__()
        self.sinks = torch.linspace(-1.0, 2.0, 8)
        self.eval()


def states(new: int, keys: int = 24, value_size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries [2, 8, S, 8], keys [2, 2, T, 8] and values [2, 2, T, v]."""
    torch.manual_seed(0)
    return torch.randn(2, 8, new, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, value_size)


def masks(new: int, keys: int = 24) -> tuple[Tensor, Tensor]:
    """What is seen, boolean, and the same as numbers that are added."""
    seen = torch.rand(2, 1, new, keys) > 0.4
    seen[..., 0] = True
    return seen, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float).min)


@pytest.mark.parametrize("new", [1, 3, 20])
def test_a_cap_and_sinks_are_computed_as_eager_attention_does(new: int) -> None:
    layer, (seen, added) = Layer(), masks(new)
    for mask in (seen, added):
        found, _ = packed_attention(layer, *states(new), mask, scaling=0.5, softcap=1.5)
        close(found, capped(layer, *states(new), added, scaling=0.5, softcap=1.5)[0])
        found, _ = packed_attention(layer, *states(new), mask, scaling=0.5, s_aux=layer.sinks)
        close(found, with_sinks(layer, *states(new), added, scaling=0.5)[0])


def test_a_bias_of_scores_is_added_to_what_hides_tokens() -> None:
    layer, bias = Layer(), torch.randn(1, 8, 6, 6)
    ahead = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), torch.finfo(torch.float).min)
    found, _ = packed_attention(layer, *states(6, 6), None, position_bias=bias)
    close(found, capped(layer, *states(6, 6), bias + ahead)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_products_are_the_fused_kernel_s_numbers(dtype: torch.dtype, groups: int, monkeypatch: Any) -> None:
    torch.manual_seed(1)
    query = torch.randn(2, 8, 1, 16, dtype=dtype)
    key, value = torch.randn(2, groups, 40, 16, dtype=dtype), torch.randn(2, groups, 40, 12, dtype=dtype)
    for mask in (None, masks(1, 40)[0], masks(1, 40)[1].to(dtype)):
        found = []
        for taken in (True, False):
            monkeypatch.setattr(grouped_attention, "_products_are_faster", lambda *_, taken=taken: taken)
            found.append(packed_attention(Layer(), query, key, value, mask)[0].float())
        assert found[0].shape == (2, 1, 8, 12)
        close(found[0], found[1], 1e-6 if dtype == torch.float32 else 2e-2)


def test_products_are_taken_where_they_are_faster() -> None:
    """On a CPU, for one new token and few query heads a group, behind enough keys; never where weights are dropped."""
    faster = grouped_attention._products_are_faster
    query, key = torch.empty(1, 8, 1, 8), torch.empty(1, 2, 512, 8)
    assert faster(query, key, 0.0)
    assert not faster(query, key, 0.1)
    assert not faster(query, key[:, :, :511], 0.0)
    assert not faster(query.expand(1, 8, 2, 8), key, 0.0)
    assert not faster(query.half(), key.half(), 0.0)
    assert not faster(query.bfloat16(), key.bfloat16(), 0.0)
    assert faster(query.bfloat16(), key.repeat(1, 1, 2, 1).bfloat16(), 0.0)
    assert not faster(query.to("meta"), key.to("meta"), 0.0)


def test_products_take_many_heads_where_the_kernel_leaves_threads_idle(monkeypatch: Any) -> None:
    """It works on one group in one thread."""
    faster = grouped_attention._products_are_faster
    query, key = torch.empty(1, 32, 1, 8), torch.empty(1, 1, 2048, 8)
    for threads, taken in ((1, False), (2, True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert faster(query, key, 0.0) == taken
        assert not faster(query, key[:, :, :2047], 0.0)
        assert not faster(query.expand(2, -1, -1, -1), key.expand(2, -1, -1, -1), 0.0)


def test_weights_are_dropped_and_the_rest_grows() -> None:
    query, key, value = states(1, 4000)
    for options in ({}, {"softcap": 5.0}):
        found, _ = packed_attention(Layer(), query, key, torch.ones_like(value), None, dropout=0.5, **options)
        assert 0.0 < (found - 1).abs().max() < 0.3
        assert (found.mean() - 1).abs() < 0.02


def test_what_it_does_not_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="was given indices, which it does not know: load with"):
        packed_attention(Layer(), *states(1), None, indices=torch.zeros(1))


def test_a_decode_step_of_transformers_compiles_into_one_graph() -> None:
    model = tiny_model("llama", 2)
    model.set_attn_implementation(PACKED)
    ids, cache = padded(97)["input_ids"], StaticCache(model.config, LENGTH)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[:, -1:]
        model(ids[:, :-1], **with_cache(model, cache))
        torch.compiler.reset()
        step = torch.compile(model, fullgraph=True, backend="eager")(ids[:, -1:], **with_cache(model, cache))
    close(step.logits, expected)
    torch.compiler.reset()


def test_it_is_offered_when_a_checkpoint_is_loaded(tmp_path: Any) -> None:
    tiny_model("llama", 2).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=PACKED)
    assert model.config._attn_implementation == PACKED
    assert model.generate(torch.arange(3, 9)[None], max_new_tokens=3, do_sample=False).shape == (1, 9)
