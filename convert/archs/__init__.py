"""Architectures by model_type: every module here that defines ARCHITECTURE is one."""

from __future__ import annotations

from transformers import CONFIG_MAPPING

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.discovery import discover
from convert_attn.modeling import FAMILIES

_OWN_KEYS = "has a key of its own for every query head, with a norm on it, and no class for fewer"
_ALIBI = "adds ALiBi's slopes to its scores, which no target class here does"
# known to be impossible today, and why
UNSUPPORTED = {
    "persimmon": _OWN_KEYS,
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "deepseek_v2": "caches a latent already",
    "deepseek_v3": "caches a latent already",
    "gpt2_mla": "caches a latent already",
    "llama_mla": "caches a latent already",
}


def architectures() -> dict[str, Architecture]:
    """All known architectures, by model_type: those that the installed transformers has a config class of."""
    found = discover(__name__, "ARCHITECTURE", Architecture)
    return {arch.model_type: arch for arch in found if arch.model_type in CONFIG_MAPPING or arch.model_type in FAMILIES}
