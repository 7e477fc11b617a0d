"""Architectures by model_type: every module here that defines ARCHITECTURE is one."""

from __future__ import annotations

from dataclasses import replace

import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.discovery import discover
from convert_attn.modeling import FAMILIES

_GATED = "multiplies what its attention gives by a gate, of which convert-attn has no facts"
_NORMED_AFTER = "norms queries and keys after they have turned with the position, which is not converted"
_REMOTE = "has no class in transformers, only code of its own that convert-attn does not run; save its weights as"
# known to be impossible today, and why
UNSUPPORTED = {
    "baichuan": f"{_REMOTE} a Llama (W_pack holds queries, keys and values; 13B has ALiBi, no Llama has) first",
    "internlm2": f"{_REMOTE} a Llama (wqkv holds, group by group, queries, one key and one value) first",
    "bitnet": "has a norm between its heads and the output projection, which is not converted",
    "diffllama": "subtracts one attention from another, which is not converted",
    "jetmoe": "has experts in its attention, which are not converted",
    "doge": "has scores that depend on values, which is not converted",
    "mimo_v2_flash": "has values of another size than its keys, which are not converted",
    "llama4_text": "sees chunks of the text, which is not converted",
    "afmoe": _GATED,
    "laguna": _GATED,
    "dory": _GATED,
    "hunyuan_v1_dense": _NORMED_AFTER,
    "hunyuan_v1_moe": _NORMED_AFTER,
    "nanochat": _NORMED_AFTER,
    "deepseek_v2": "caches a latent already",
    "deepseek_v3": "caches a latent already",
} | {name: "caches a latent already" for name in FAMILIES if name.endswith("_mla")}


_ADOPTED: dict[str, Architecture] = {}


def architectures() -> dict[str, Architecture]:
    """Give all known architectures, by model_type: those whose class in the installed transformers is right."""
    return _ADOPTED | {arch.model_type: arch for arch in _with_config() if not _is_early(arch)}


def adopt(model_type: str, like: Architecture) -> Architecture:
    """Read a model type that there is no file of as another family, in this process from now on."""
    _ADOPTED[model_type] = replace(like, model_type=model_type)
    return _ADOPTED[model_type]


def adopted() -> dict[str, Architecture]:
    """Give what was adopted, by model_type."""
    return dict(_ADOPTED)


def forget(model_type: str) -> None:
    """Undo `adopt`."""
    _ADOPTED.pop(model_type, None)


def early() -> dict[str, str]:
    """Give the model types whose class in the installed transformers is not right yet, and the release where it is."""
    return {arch.model_type: arch.since for arch in _with_config() if _is_early(arch)}


def _with_config() -> list[Architecture]:
    found = discover(__name__, "ARCHITECTURE", Architecture)
    return [arch for arch in found if arch.model_type in CONFIG_MAPPING or arch.model_type in FAMILIES]


def _is_early(arch: Architecture) -> bool:
    return Version(transformers.__version__) < Version(arch.since)
