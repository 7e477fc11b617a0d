"""Small random models of each class of language models in modeling/, every head of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from convert_attn import modeling

VOCABULARY = 61
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "num_labels": 3}
_LATENT = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "v_head_dim": 8}
_ROTARY = {"intermediate_size": 48, "qk_rope_head_dim": 4, "rope_inv_freq": [[1.0, 0.1], [0.5, 0.02]]}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2_gqa": {"n_positions": 64, "num_key_value_heads": 2},
    "gpt2_mla": {"n_positions": 64, **_LATENT},
    "llama_mla": _LATENT | _ROTARY,
}
# what of transformers each base model stands in for
STANDS_FOR: dict[str, Any] = {
    "gpt2_gqa": transformers.GPT2Model,
    "gpt2_mla": transformers.GPT2Model,
    "llama_mla": transformers.LlamaModel,
}
CAUSAL = {family: classes for family, classes in modeling.FAMILIES.items() if classes.causal}
HEADS = [(family, auto) for family, classes in CAUSAL.items() for auto in classes.auto_models]


def build(family: str, auto: str = "AutoModelForCausalLM", attn: str = "sdpa") -> Any:
    """A model of a family, made by an Auto class, that pays uneven attention; always the same weights."""
    config = transformers.AutoConfig.for_model(family, **_SIZES, **_TOKENS, **SETTINGS[family])
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config, attn_implementation=attn).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def installed(family: str, auto: str) -> Any:
    """The class of transformers whose forward this head has, or stands in for."""
    if auto == "AutoModel":
        return STANDS_FOR[family]
    model = getattr(transformers, auto)._model_mapping[transformers.AutoConfig.for_model(family).__class__]
    return next(cls for cls in model.__mro__ if cls.__module__.startswith("transformers.") and "forward" in vars(cls))


def tokens(batch: int = 2, length: int = 11) -> Tensor:
    """Token ids [batch, length], none of them padding."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))
