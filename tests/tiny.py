"""Tiny random checkpoints of every known architecture, built from a config: no network, no fixed list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)

import convert_attn  # noqa: F401  registers our classes
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.attention_tensors import join, split
from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import LatentCache, SharedHeads
from convert_attn.convert.archs.geometry import Geometry, geometry
from convert_attn.convert.classes.auto_classes import writes_alone
from convert_attn.convert.targets import fitting
from convert_attn.convert.weights.attention import AttentionWeights

HEADS = 8
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SOME_WINDOWS = {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_FEW_EXPERTS = _EXPERTS | {"num_experts": 4}
_ROUTED = _EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "logits_scaling": 1.0}

# what of a family shows only where its config says so, at sizes at which it shows
OWN: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0, "sliding_window": 20},
    "qwen3": {"head_dim": 8},
    "cohere": {"use_qk_norm": True, "logit_scale": 1.0},
    "smollm3": {"no_rope_layers": [1, 0], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 5,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere2": {
        "head_dim": 8,
        "logit_scale": 1.0,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm": {"head_dim": 8, "attention_bias": True},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 20,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "starcoder2": {"sliding_window": 20},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 20} | _ROPE,
    "qwen2_moe": _FEW_EXPERTS | {"shared_expert_intermediate_size": 32, "mlp_only_layers": [1]},
    "qwen3_moe": {"head_dim": 8, "mlp_only_layers": [1]} | _FEW_EXPERTS,
    "olmoe": _FEW_EXPERTS,
    "granite": _GRANITE,
    "granitemoe": _GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoeshared": _GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
    "granite_swa": _GRANITE | _SOME_WINDOWS,
    "granitemoe_swa": _GRANITE | _SOME_WINDOWS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "hyperclovax": _GRANITE | {"use_post_norm": True},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True} | _ROPE,
    "ministral": {"head_dim": 8} | _SOME_WINDOWS | _ROPE,
    "ministral3": {
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 32,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "helium": {"head_dim": 8} | _ROPE,
    "glm4": {"head_dim": 8, "attention_bias": True},
    "exaone4": _SOME_WINDOWS,
    "exaone_moe": {"num_experts": 4, "mlp_layer_types": ["dense", "sparse"]} | _EXPERTS | _SOME_WINDOWS,
    "ernie4_5": {"head_dim": 8} | _ROPE,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1}
    | _ROPE,
    "seed_oss": {"head_dim": 8},
    "olmo3": _SOME_WINDOWS,
    "internlm3": {"head_dim": 8},
    "iquestcoder": {"head_dim": 8},
    "apertus": _ROPE,
    "apertus1p5_text": _ROPE,
    "dots1": _ROUTED | _SOME_WINDOWS | {"n_group": 1, "topk_group": 1},
    "flex_olmo": _FEW_EXPERTS | _ROPE,
    "cwm": {"head_dim": 8} | _SOME_WINDOWS | _ROPE,
    "glm4_moe": _ROUTED | {"use_qk_norm": True},
    "sarvam_moe": _ROUTED | {"head_dim": 8} | _ROPE,
    "solar_open": _ROUTED | {"head_dim": 8} | _ROPE,
    "minimax_m2": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2} | _ROPE,
    "cohere2_moe": {"head_dim": 8, "logit_scale": 1.0, "num_experts": 4, "num_experts_per_tok": 2} | _SOME_WINDOWS,
    "kolibri1": {"head_dim": 8, "shared_expert_intermediate_size": 32} | _FEW_EXPERTS | _SOME_WINDOWS,
    "mellum": {"head_dim": 8} | _FEW_EXPERTS | _SOME_WINDOWS,
    "vaultgemma": {"head_dim": 8, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0, "sliding_window": 20},
    "hy_v3": {"head_dim": 8, "num_experts": 4, "mlp_layer_types": ["dense", "sparse"]} | _EXPERTS | _ROPE,
    "bert": {"pad_token_id": 0},
    "distilbert": {"hidden_dim": 96, "pad_token_id": 0},
    "electra": {"embedding_size": 24, "pad_token_id": 0},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "bert_gqa": {"pad_token_id": 0},
    "distilbert_gqa": {"hidden_dim": 96, "pad_token_id": 0},
    "electra_gqa": {"embedding_size": 24, "pad_token_id": 0},
    "roberta_gqa": {"pad_token_id": 1},
    "xlm_roberta_gqa": {"pad_token_id": 1},
    "nomic_bert": {"pad_token_id": 0} | _ROPE,
    "nomic_bert_gqa": {"pad_token_id": 0} | _ROPE,
    "eurobert": {"pad_token_id": 0} | _ROPE,
    "gptj": {"rotary_dim": 4, "n_inner": 96},
    "gptj_gqa": {"rotary_dim": 4, "n_inner": 96},
    "codegen": {"rotary_dim": 4, "n_inner": 96},
    "codegen_gqa": {"rotary_dim": 4, "n_inner": 96},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 20},
    "gpt_neo_gqa": {"attention_types": [[["global", "local"], 1]], "window_size": 20},
    "bloom": {"seq_length": 64},
    "bloom_gqa": {"seq_length": 64},
    "mpt": {"max_seq_len": 64},
    "mpt_gqa": {"max_seq_len": 64},
    "falcon": {"multi_query": False, "ffn_hidden_size": 96},
    "falcon_gqa": {"multi_query": False, "ffn_hidden_size": 96},
    "gpt_bigcode": {"multi_query": False, "n_inner": 96},
    "gpt_bigcode_gqa": {"n_inner": 96},
    "xglm": {"ffn_dim": 96},
    "xglm_gqa": {"ffn_dim": 96},
    "opt": {"ffn_dim": 96},
    "opt_gqa": {"ffn_dim": 96},
}

# encoder-decoders: three blocks on one side, two on the other, and another number of heads
_DECODER: dict[str, Any] = {
    "encoder_layers": 3,
    "encoder_attention_heads": HEADS // 2,
    "decoder_layers": 2,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_BIASED: dict[str, Any] = {
    "d_kv": 8,
    "d_ff": 96,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_SOUNDS: dict[str, Any] = {
    "num_mel_bins": 8,
    "max_source_positions": 12,
    "max_target_positions": 64,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
for _name, _own in {
    "bart": _DECODER,
    "mbart": _DECODER,
    "pegasus": _DECODER,
    "marian": _DECODER | {"decoder_vocab_size": 97},
    "t5": _BIASED,
    "mt5": _BIASED,
    "umt5": _BIASED,
    "whisper": _DECODER | _SOUNDS,
}.items():
    OWN[_name] = OWN[f"{_name}_gqa"] = _own

# every architecture that some target can hold: language models, and encoders, which have no cache and no next token
_SIZES = Geometry(hidden_size=64, num_layers=2, num_heads=HEADS, num_kv_heads=HEADS, head_dim=8, context=64)
_HELD = {name: arch for name, arch in architectures().items() if fitting(arch, _SIZES, SharedHeads.of(HEADS // 2, 2))}
SEQ2SEQ = [name for name, arch in _HELD.items() if arch.cross]
CONVERTIBLE = [name for name, arch in _HELD.items() if arch.causal and not arch.cross and writes_alone(name)]
ENCODERS = [name for name, arch in _HELD.items() if not arch.causal]


def _kind(arch: Architecture) -> tuple[object, ...]:
    """What the arithmetic of attention asks of a family; families of a kind differ in names and around it."""
    switches = (arch.interleaved, bool(arch.q_norm), bool(arch.sinks), bool(arch.after), arch.transposed)
    packing = type(arch.qkv) if arch.turns else None  # without rotary position nothing else depends on it
    return (packing, arch.position, arch.norm and arch.norm.gain_offset, *switches)


def _latents(name: str) -> int:
    """How many classes hold a family with a latent."""
    arch = architectures()[name]
    return len(fitting(arch, _SIZES, LatentCache.of(16, 8 if arch.position == "rope" else 0, 2)))


def _kinds() -> list[str]:
    """Of each kind the family that most classes hold."""
    found: dict[object, str] = {}
    for name in sorted(CONVERTIBLE, key=lambda name: -_latents(name)):
        found.setdefault(_kind(architectures()[name]), name)
    return sorted(found.values())


# for long tests, which --slow runs on all of CONVERTIBLE
KINDS = _kinds()


def auto_class(arch: Architecture | None) -> Any:
    """The Auto class of what `tiny_model` makes of a family."""
    if arch is not None and arch.cross:
        return AutoModelForSeq2SeqLM if arch.context_key != "max_target_positions" else AutoModelForSpeechSeq2Seq
    return AutoModelForCausalLM if arch is None or arch.causal else AutoModelForMaskedLM


def tiny_model(model_type: str, kv_heads: int = HEADS, seed: int = 0, **options: Any) -> Any:
    """A random model, fp32, with norms and biases away from one and zero; 2 layers, 8 heads of 8.

    A language model, an encoder with the head that fills in words, or an encoder-decoder.
    """
    arch = architectures()[model_type]
    values = (
        SIZES | OWN.get(model_type, {}) | ({arch.config_kv_heads: kv_heads} if arch.config_kv_heads else {}) | options
    )
    config = AutoConfig.for_model(model_type, **values)
    torch.manual_seed(seed)
    model = auto_class(arch).from_config(config).eval()
    made = tuple(getattr(model, "_keys_to_ignore_on_save", None) or ())  # by the class: no checkpoint has it
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in made:
                continue
            if parameter.ndim == 1 or "norm" in name:  # some have a weight for each head
                centre = 0.0 if name.endswith("bias") or (arch.norm and arch.norm.gain_offset) else 1.0
                parameter.normal_(centre, 0.2)
            else:
                parameter.normal_(0, 0.15)
    return model


def tiny_geometry(model: Any) -> tuple[Architecture, Geometry]:
    """The facts and sizes of a model in memory."""
    arch = architectures()[model.config.model_type].of(model.config)
    return arch, geometry(arch, model.config.to_dict(), "tiny")


def block_tensors(model: Any, layer: int) -> dict[str, torch.Tensor]:
    """A block's attention tensors by name below the block."""
    arch, _ = tiny_geometry(model)
    prefix = arch.base + arch.stem(layer)
    state = model.state_dict()
    return {name: state[prefix + name].clone() for name in sorted(arch.at(layer).tensors) if prefix + name in state}


def get_attention(model: Any, layer: int) -> AttentionWeights:
    """A block's attention weights in float64."""
    arch, sizes = tiny_geometry(model)
    return split(arch.at(layer), sizes, block_tensors(model, layer)).to(torch.float64)


def set_attention(model: Any, layer: int, weights: AttentionWeights) -> None:
    """Write attention weights (as many K/V heads as the model has) into a block."""
    arch, sizes = tiny_geometry(model)
    prefix = arch.base + arch.stem(layer)
    new = {prefix + name: tensor.float() for name, tensor in join(arch.at(layer), sizes, weights).items()}
    _, unexpected = model.load_state_dict(new, strict=False)
    assert not unexpected


def logits_of(model: Any, length: int = 24, batch: int = 2, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Logits [batch, length, vocabulary] on fixed random tokens, or on these."""
    if tokens is None:
        generator = torch.Generator().manual_seed(7)
        tokens = torch.randint(1, SIZES["vocab_size"], (batch, length), generator=generator)
    given = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        given = source_of(model, tokens) | {"decoder_input_ids": tokens}
    with torch.no_grad():
        return model(**given).logits


def source_of(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What an encoder-decoder reads on the side of its encoder: the tokens the other way round, or random sounds."""
    if model.main_input_name == "input_ids":
        return {"input_ids": tokens.flip(1)}
    size = (len(tokens), model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return {model.main_input_name: torch.randn(size, generator=torch.Generator().manual_seed(8))}


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor, rounding: float = 5e-6) -> None:
    """Equal but for what float32 rounds, a share of the largest logit, as another processor adds in another order."""
    torch.testing.assert_close(found, expected, atol=rounding * float(expected.abs().max()), rtol=1e-5)


def load(folder: Path, **options: Any) -> Any:
    """A checkpoint folder in fp32, without remote code: our classes are registered."""
    arch = architectures().get(AutoConfig.from_pretrained(folder).model_type)
    return auto_class(arch).from_pretrained(folder, dtype=torch.float32, **options).eval()
