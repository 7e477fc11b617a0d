"""Architectures by model_type: every module here that defines ARCHITECTURE is one."""

from __future__ import annotations

from difflib import get_close_matches

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.discovery import discover
from convert_attn.convert.errors import UsageError

# Classes without a causal cache: there is nothing to shrink.
ENCODER_ONLY = frozenset(
    "albert bert camembert deberta deberta-v2 distilbert electra ernie esm layoutlm longformer mobilebert "
    "modernbert mpnet nomic_bert roberta roberta-prelayernorm squeezebert vit wav2vec2 xlm-roberta "
    "xlm-roberta-xl".split()
)

_QK_NORM = "normalises the query and key of every head, which sharing or factorising keys does not commute with"
_ALIBI = "adds ALiBi's slopes to its scores, which no target class here does"
# known to be impossible today, and why
UNSUPPORTED = {
    "qwen3": _QK_NORM,
    "qwen3_moe": _QK_NORM,
    "olmo2": _QK_NORM,
    "gemma3": _QK_NORM,
    "gemma3_text": _QK_NORM,
    "persimmon": _QK_NORM,
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "deepseek_v2": "caches a latent already",
    "deepseek_v3": "caches a latent already",
    "gpt2_mla": "caches a latent already",
    "llama_mla": "caches a latent already",
}


def architectures() -> dict[str, Architecture]:
    """All known architectures, by model_type."""
    return {arch.model_type: arch for arch in discover(__name__, "ARCHITECTURE", Architecture)}


def architecture(model_type: str) -> Architecture:
    """The facts of one model type.

    Raises:
        UsageError: encoder-only, or not known (naming the nearest that is).
    """
    known = architectures()
    if model_type in known:
        return known[model_type]
    if model_type in ENCODER_ONLY:
        raise UsageError(
            f"model type '{model_type}' is encoder-only: it keeps no KV cache, so there is nothing to convert; "
            "give a decoder model"
        )
    if model_type in UNSUPPORTED:
        raise UsageError(
            f"model type '{model_type}' {UNSUPPORTED[model_type]}; convertible are {', '.join(sorted(known))}"
        )
    nearest = get_close_matches(model_type, known, n=1, cutoff=0.0)
    raise UsageError(
        f"model type '{model_type}' is not known; known are {', '.join(sorted(known))} (nearest: {nearest[0]})"
    )
