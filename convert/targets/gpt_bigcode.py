"""GPT-2 with one K/V head is GPTBigCode: native, with ordinary linears where GPT-2 has Conv1D."""

from dataclasses import replace

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.geometry import Geometry
from convert_attn.convert.targets.base import Config, Target


def _configure(config: Config, geometry: Geometry, groups: int) -> Config:
    return {
        "multi_query": True,
        "num_key_value_heads": 1,
        "head_dim": geometry.head_dim,
        # GPT-2's own default; GPTBigCode's is another one
        "activation_function": config.get("activation_function", "gelu_new"),
        "scale_attention_softmax_in_fp32": True,
        "attention_softmax_in_fp32": True,
    }


def _adapt(weights: AttentionWeights, layer: int, config: Config) -> AttentionWeights:
    """GPT-2 can divide scores by the layer's number; GPTBigCode cannot, so the query does."""
    if not config.get("scale_attn_by_inverse_layer_idx", False):
        return weights
    scale = 1 / (layer + 1)
    q_bias = None if weights.q_bias is None else weights.q_bias * scale
    return replace(weights, q=weights.q * scale, q_bias=q_bias)


TARGET = Target(
    name="gpt_bigcode",
    layout="native",
    sources=frozenset({"gpt2", "gpt2_gqa"}),
    becomes="gpt_bigcode",
    configure=_configure,
    holds=lambda heads, groups: groups == 1,
    classes={
        kind.format(family): kind.format("GPTBigCode")
        for family in ("GPT2", "GPT2GQA")
        for kind in ("{}Model", "{}ForSequenceClassification", "{}ForTokenClassification")
    }
    | {"GPT2LMHeadModel": "GPTBigCodeForCausalLM", "GPT2GQAForCausalLM": "GPTBigCodeForCausalLM"},
    adapt=_adapt,
    removed=frozenset({"scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}),
)
