"""The result, read back before it is published: whole, finite, and exactly what its class expects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from convert_attn import modeling
from convert_attn.convert.checkpoint.safetensors_format import DTYPES, FLOATS, TensorInfo
from convert_attn.convert.checkpoint.shards import SafetensorsWeights, Weights, open_weights
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.progress import Progress


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
    check_names(weights.infos.values(), _written_config(folder, auto_class), auto_class)
    _check_finite(weights, progress)


def _check_readable(folder: Path, weights: Weights) -> None:
    """The reference reader accepts every shard too."""
    for file in weights.metadata:
        try:
            with safe_open(folder / file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ConvertAttnError(f"written shard '{file}' cannot be opened: {error}") from None


def _expected(config: PreTrainedConfig, auto_class: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str], str]:
    """Names and shapes that the class has, which of them are tied to which, and the base model's prefix."""
    try:
        with torch.device("meta"):
            model = getattr(transformers, auto_class).from_config(config)
    except Exception as error:  # the class decides what it raises
        raise _refused(auto_class, error) from None
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return shapes, tied, f"{model.base_model_prefix}."


def _refused(auto_class: str, error: Exception) -> ConvertAttnError:
    return ConvertAttnError(f"the result's config.json is refused by {auto_class}: {' '.join(str(error).split())}")


def _written_config(folder: Path, auto_class: str) -> PreTrainedConfig:
    modeling.register()
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    except Exception as error:  # the class decides what it raises
        raise _refused(auto_class, error) from None
    return config


def check_names(infos: Iterable[TensorInfo], config: PreTrainedConfig, auto_class: str) -> None:
    """No missing and no unexpected names, every shape as in the class; names with or without the base's prefix.

    Args:
        infos: what is, or is about to be, in the checkpoint.

    Raises:
        ConvertAttnError: naming the first tensor that does not fit.
    """
    expected, tied, base = _expected(config, auto_class)
    full = {}
    for info in infos:
        names = (info.name, base + info.name, info.name.removeprefix(base))
        known = next((name for name in names if name in expected), None)
        if known is None:
            raise ConvertAttnError(
                f"tensor '{info.name}' is not expected by the result's class ({auto_class}): the checkpoint does not "
                "belong to its config.json"
            )
        full[known] = info
    # of tied names either one will do
    twins = tied | {twin: name for name, twin in tied.items()}
    missing = sorted(name for name in expected if name not in full and twins.get(name) not in full)
    if missing:
        raise ConvertAttnError(
            f"tensor '{missing[0]}' is expected by the result's class ({auto_class}) and missing from the checkpoint; "
            "download it again"
        )
    for name, info in full.items():
        if info.shape != expected[name]:
            raise ConvertAttnError(
                f"tensor '{name}' has shape {list(info.shape)}, the result's class expects {list(expected[name])}"
            )


def _check_finite(weights: Weights, progress: Progress) -> None:
    """Every floating-point number of every tensor."""
    names = [name for name, info in weights.infos.items() if info.dtype in FLOATS]
    for done, name in enumerate(names):
        progress("verify", done, len(names))
        dtype = DTYPES[weights.infos[name].dtype]
        for chunk in weights.chunks(name):
            # one pass: the least and the largest number are NaN where any is
            ends = torch.stack(torch.aminmax(torch.frombuffer(bytearray(chunk), dtype=dtype)))
            if not torch.isfinite(ends).all():
                raise ConvertAttnError(
                    f"tensor '{name}' has values that are NaN or infinite: the source checkpoint is broken "
                    f"(download it again) or its numbers do not fit {weights.infos[name].dtype} (give another --dtype)"
                )
    progress("verify", len(names), len(names))
