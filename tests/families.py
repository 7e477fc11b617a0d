"""Small random models of each class of language models in modeling/, every head of them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from tiny import OWN
from torch import Tensor
from transformers.models.bloom.modeling_bloom import BloomBlock
from transformers.models.codegen.modeling_codegen import CodeGenBlock
from transformers.models.falcon.modeling_falcon import FalconDecoderLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock
from transformers.models.gptj.modeling_gptj import GPTJBlock
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mpt.modeling_mpt import MptBlock

from convert_attn import modeling
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.block_facts import alibi_slopes

VOCABULARY = 61
_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "num_labels": 3}
_LATENT = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "v_head_dim": 8}
_HEADS = {"head_dim": 0}  # follows from the others
_ROTARY = {"intermediate_size": 48, "qk_rope_head_dim": 4, "rope_inv_freq": [[1.0, 0.1], [0.5, 0.02]]}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2_gqa": {"n_positions": 64, "num_key_value_heads": 2},
    "gpt2_mla": {"n_positions": 64, **_LATENT},
    "llama_mla": _LATENT | _ROTARY,
    "gpt_neox_gqa": {"intermediate_size": 48, "num_key_value_heads": 2},
    "gptj_gqa": {"rotary_dim": 4, "n_positions": 64, "num_key_value_heads": 2},
    "codegen_gqa": {"rotary_dim": 4, "n_positions": 64, "num_key_value_heads": 2},
    "gpt_neo_gqa": {"attention_types": [[["global", "local"], 1]], "window_size": 4, "num_key_value_heads": 2},
    "opt_gqa": {"ffn_dim": 48, "init_std": 0.2, "num_key_value_heads": 2},
    "gpt_bigcode_gqa": {"n_positions": 64, "num_key_value_heads": 2},
    "bloom_gqa": {"num_key_value_heads": 2},
    "mpt_gqa": {"max_seq_len": 64, "use_cache": True, "num_key_value_heads": 2},
    "falcon_gqa": {"ffn_hidden_size": 48, "num_key_value_heads": 2},
    "xglm_gqa": {"ffn_dim": 48, "init_std": 0.2, "num_key_value_heads": 2},
    "biogpt_gqa": {"intermediate_size": 48, "num_key_value_heads": 2},
    "persimmon_gqa": {"intermediate_size": 48, "num_key_value_heads": 2},
}


def native_type(family: str) -> str:
    """The model type of transformers that a family is of."""
    return family.rpartition("_")[0]


# of families whose config says more than these sizes
_OWN: dict[str, dict[str, Any]] = {
    "gptj_mla": {"rotary_dim": 4, "n_positions": 64},
    "codegen_mla": {"rotary_dim": 4, "n_positions": 64},
    "gpt_neo_mla": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "opt_mla": {"ffn_dim": 48, "init_std": 0.2},
    "mpt_mla": {"max_seq_len": 64, "use_cache": True},
    "falcon_mla": {"ffn_hidden_size": 48},
    "xglm_mla": {"ffn_dim": 48, "init_std": 0.2},
    "gpt_bigcode_mla": {"n_positions": 64, "n_inner": 48},
}


def _with_a_latent(family: str) -> dict[str, Any]:
    """Settings of a class that has its family's blocks around latent attention."""
    arch = architectures()[native_type(family)]
    own = OWN.get(native_type(family), {})
    cap = own.get("attn_logit_softcapping")
    slopes = list(alibi_slopes(_SIZES["num_attention_heads"])) if arch.position == "alibi" else None
    besides = {"score_softcap": cap, "key_norm_heads": 2 if arch.k_norm else 0, "alibi_slopes": slopes}
    return _LATENT | (_ROTARY if arch.turns else {}) | own | _HEADS | besides | _OWN.get(family, {})


# what of transformers each base model stands in for
STANDS_FOR: dict[str, Any] = {
    "gpt2_gqa": transformers.GPT2Model,
    "gpt2_mla": transformers.GPT2Model,
    "llama_mla": transformers.LlamaModel,
    "gpt_neox_gqa": transformers.GPTNeoXModel,
    "gptj_gqa": transformers.GPTJModel,
    "codegen_gqa": transformers.CodeGenModel,
    "gpt_neo_gqa": transformers.GPTNeoModel,
    "opt_gqa": transformers.OPTModel,
    "gpt_bigcode_gqa": transformers.GPTBigCodeModel,
    "bloom_gqa": transformers.BloomModel,
    "mpt_gqa": transformers.MptModel,
    "falcon_gqa": transformers.FalconModel,
    "xglm_gqa": transformers.XGLMModel,
    "biogpt_gqa": transformers.BioGptModel,
    "persimmon_gqa": transformers.PersimmonModel,
}
# of families whose class in the installed transformers is right
LATENTS = [
    name
    for name in modeling.FAMILIES
    if name.endswith("_mla") and name not in SETTINGS and native_type(name) in architectures()
]
SETTINGS |= {name: _with_a_latent(name) for name in LATENTS}
CAUSAL = {family: classes for family, classes in modeling.FAMILIES.items() if classes.causal and family in SETTINGS}
# by native type: what of transformers a block stands in for, where it is not transformers' own, and what of its
# arguments is unused
_BLOCKS: dict[str, tuple[Any, str | None]] = {
    "gpt2": (GPT2Block, "encoder_hidden_states"),
    "llama": (LlamaDecoderLayer, "position_embeddings"),
    "codegen": (CodeGenBlock, None),
    "gpt_neo": (GPTNeoBlock, None),
    "gptj": (GPTJBlock, None),
    "bloom": (BloomBlock, "alibi"),
    "mpt": (MptBlock, "position_bias"),
    "falcon": (FalconDecoderLayer, "alibi"),
}


def _masks_by_itself(family: str) -> bool:
    """Whether the attention has a mask of its own, which no engine and no paged cache learns of."""
    arch = architectures()[native_type(family)]
    return arch.position == "alibi" or bool(arch.local_layers)


OWN_MASKS = frozenset(family for family in CAUSAL if _masks_by_itself(family))


def _first_of_kind() -> list[str]:
    """The first family of each set of our files that a checkpoint carries besides the two that are called after it."""
    found: dict[tuple[str, ...], str] = {}
    for family in CAUSAL:
        files = (file.name for file in modeling.source_files(family) if not file.stem.endswith(f"_{family}"))
        found.setdefault(tuple(files), family)
    return list(found.values())


FIRST_OF_KIND = _first_of_kind()
HEADS = [(family, auto) for family, classes in CAUSAL.items() for auto in classes.auto_models]


def build(family: str, auto: str = "AutoModelForCausalLM", attn: str = "sdpa", **changes: Any) -> Any:
    """A model of a family, made by an Auto class, that pays uneven attention; always the same weights."""
    config = transformers.AutoConfig.for_model(family, **_SIZES | _TOKENS | SETTINGS[family] | changes)
    if not transformers.AutoModel._model_mapping[type(config)]._supports_sdpa:  # as the stock class
        attn = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config, attn_implementation=attn).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def installed(family: str, auto: str) -> Any:
    """The class of transformers whose forward this head has, or stands in for."""
    if auto == "AutoModel" and family in STANDS_FOR:
        return STANDS_FOR[family]
    model = getattr(transformers, auto)._model_mapping[transformers.AutoConfig.for_model(family).__class__]
    return next(cls for cls in model.__mro__ if cls.__module__.startswith("transformers.") and "forward" in vars(cls))


def serves(family: str) -> bool:
    """Whether the class says that engines may put an attention of their own in its place: as the stock one does."""
    known = transformers.AutoModel._model_mapping[transformers.AutoConfig.for_model(family).__class__]
    return bool(known._supports_attention_backend) and family not in OWN_MASKS


def hands_on(block: Any) -> bool:
    """Whether a block gives its attention what it is given besides; some of transformers' own drop that."""
    forward = inspect.unwrap(type(block).forward)
    return not forward.__module__.startswith("transformers.") or inspect.getsource(forward).count("**kwargs") > 1


def batches(family: str) -> bool:
    """Whether transformers' continuous batching computes what the class does."""
    capped = SETTINGS[family].get("score_softcap")
    known = installed(family, "AutoModel")._supports_attention_backend and not capped
    return known and hands_on(first_block(build(family, "AutoModel")))


def native_config(family: str) -> Any:
    """A config of transformers' own model, of these sizes."""
    known = {"intermediate_size", "ffn_dim", "rotary_dim", "attention_types"} & SETTINGS[family].keys()
    own = OWN.get(native_type(family), {}) | {name: SETTINGS[family][name] for name in known}
    if hasattr(transformers.CONFIG_MAPPING[native_type(family)], "num_key_value_heads"):  # by default, another
        own = {"num_key_value_heads": _SIZES["num_attention_heads"]} | own
    return transformers.AutoConfig.for_model(native_type(family), **_SIZES, **_TOKENS, **own)


def first_block(model: Any) -> Any:
    """The first decoder block of a base model."""
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))[0]


def installed_block(family: str, block: Any) -> Any:
    """The class of transformers that a block is, or stands in for."""
    if native_type(family) in _BLOCKS:
        return _BLOCKS[native_type(family)][0]
    return next(cls for cls in type(block).__mro__ if cls.__module__.startswith("transformers.models"))


def unused_argument(family: str) -> str | None:
    """What the installed block declares and ours refuses; None where the block is transformers' own."""
    return _BLOCKS.get(native_type(family), (None, None))[1]


def tokens(batch: int = 2, length: int = 11) -> Tensor:
    """Token ids [batch, length], none of them padding."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))
