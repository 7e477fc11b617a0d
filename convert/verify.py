"""The result, read back before it is published: whole, finite, and exactly what its class expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from convert_attn import modeling
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.source import SafetensorsWeights, Weights, open_weights
from convert_attn.convert.tensors import DTYPES, FLOATS

Progress = Callable[[str, int, int], None]


def verify_folder(folder: Path, auto_class: str, progress: Progress) -> None:
    """Check a checkpoint folder against the class that its config names.

    Args:
        auto_class: the transformers Auto class that loads it, e.g. "AutoModelForCausalLM".

    Raises:
        ConvertAttnError: unreadable files, missing or unexpected tensors, wrong shapes, values not finite.
    """
    weights = open_weights(folder)
    if not isinstance(weights, SafetensorsWeights):
        raise ConvertAttnError(f"{folder} has no safetensors")
    _check_readable(folder, weights)
    _check_names(folder, weights, auto_class)
    _check_finite(weights, progress)


def _check_readable(folder: Path, weights: Weights) -> None:
    """The reference reader accepts every shard too."""
    for file in weights.metadata:
        try:
            with safe_open(folder / file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ConvertAttnError(f"written shard '{file}' cannot be opened: {error}") from None


def _expected(folder: Path, auto_class: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str], str]:
    """Names and shapes that the class has, which of them are tied to which, and the base model's prefix."""
    modeling.register()
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder)
            model = getattr(transformers, auto_class).from_config(config)
    except Exception as error:  # the class decides what it raises
        first = " ".join(str(error).split())
        raise ConvertAttnError(f"the result's config.json is refused by {auto_class}: {first}") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return shapes, tied, f"{model.base_model_prefix}."


def _check_names(folder: Path, weights: Weights, auto_class: str) -> None:
    """No missing and no unexpected names, every shape as in the class."""
    expected, tied, base = _expected(folder, auto_class)
    full = {}
    for name, info in weights.infos.items():
        known = next((n for n in (name, base + name, name.removeprefix(base)) if n in expected), None)
        if known is None:
            raise ConvertAttnError(f"tensor '{name}' is not expected by the result's class ({auto_class})")
        full[known] = info
    # of tied names either one will do
    twins = tied | {twin: name for name, twin in tied.items()}
    missing = sorted(name for name in expected if name not in full and twins.get(name) not in full)
    if missing:
        raise ConvertAttnError(f"tensor '{missing[0]}' is expected by the result's class and was not written")
    for name, info in full.items():
        if info.shape != expected[name]:
            raise ConvertAttnError(
                f"tensor '{name}' was written with shape {list(info.shape)}, the class expects {list(expected[name])}"
            )


def _check_finite(weights: Weights, progress: Progress) -> None:
    """Every floating-point number of every tensor."""
    names = [name for name, info in weights.infos.items() if info.dtype in FLOATS]
    for done, name in enumerate(names):
        progress("verify", done, len(names))
        dtype = DTYPES[weights.infos[name].dtype]
        for chunk in weights.chunks(name):
            values = torch.frombuffer(bytearray(chunk), dtype=dtype)
            if not torch.isfinite(values).all():
                raise ConvertAttnError(
                    f"tensor '{name}' has values that are NaN or infinite: the source checkpoint is broken "
                    f"(download it again) or its numbers do not fit {weights.infos[name].dtype} (give another --dtype)"
                )
    progress("verify", len(names), len(names))
