"""GPT-2 with one K/V head is GPTBigCode: native, with ordinary linears where GPT-2 has Conv1D; so is GPTBigCode."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, SharedHeads
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.targets.base import Blueprint, Config, Converted, Target, shared_tensors
from convert_attn.convert.weights.attention import AttentionWeights


def _configure(blueprint: Blueprint) -> Config:
    typed: Any = typed_config(blueprint.config, "the checkpoint")
    return {
        "multi_query": True,
        "num_key_value_heads": 1,
        "head_dim": blueprint.sizes.head_dim,
        # null means the same, but not to every reader
        "n_inner": blueprint.config.get("n_inner") or 4 * blueprint.sizes.hidden_size,
        # written out: the classes have other defaults
        "activation_function": typed.activation_function,
        "scale_attention_softmax_in_fp32": True,
        "attention_softmax_in_fp32": True,
    }


def _tensors(blueprint: Blueprint, converted: Converted, layer: int) -> dict[str, Tensor]:
    """GPT-2 can divide scores by the layer's number; GPTBigCode cannot, so the query does."""
    scale = blueprint.sizes.scale(layer) / blueprint.sizes.scale(0)
    if scale != 1 and isinstance(converted, AttentionWeights):
        q_bias = None if converted.q_bias is None else converted.q_bias * scale
        converted = replace(converted, q=converted.q * scale, q_bias=q_bias)
    return shared_tensors(blueprint, converted, layer)


TARGET = Target(
    name="gpt_bigcode",
    layout="native",
    sources=frozenset({"gpt2", "gpt2_gqa", "gpt_bigcode", "gpt_bigcode_gqa"}),
    becomes="gpt_bigcode",
    configure=_configure,
    holds=lambda sizes, form: form == SharedHeads.of(1, sizes.num_layers),
    classes={
        f"{family}{kind}": f"GPTBigCode{kind}"
        for family in ("GPT2", "GPT2GQA", "GPTBigCode", "GPTBigCodeGQA")
        for kind in ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
    }
    | {"GPT2LMHeadModel": "GPTBigCodeForCausalLM"},
    tensors=_tensors,
    removed=frozenset({HEADS_BY_LAYER, "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}),
)
