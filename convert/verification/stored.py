"""The result, read back before it is published: whole, finite, and exactly what its class expects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from convert_attn import modeling
from convert_attn.convert.checkpoint.safetensors_format import TensorInfo
from convert_attn.convert.checkpoint.shards import SafetensorsWeights, Weights, finite_chunks, open_weights
from convert_attn.convert.classes.stored_names import Group, names_in
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.progress import Progress


def verify_folder(folder: Path, auto_class: str, progress: Progress, *, numbers: bool = True) -> None:
    """Check a checkpoint folder against the class that its config names.

    Args:
        auto_class: the transformers Auto class that loads it, e.g. "AutoModelForCausalLM".
        numbers: whether to read all numbers; False: only headers, of what was looked at when it was written.

    Raises:
        ConvertAttnError: unreadable files, missing or unexpected tensors, wrong shapes, values not finite.
    """
    weights = open_weights(folder)
    if not isinstance(weights, SafetensorsWeights):
        raise ConvertAttnError(f"{folder} has no safetensors")
    _check_readable(folder, weights)
    check_names(weights.infos.values(), _written_config(folder, auto_class), auto_class)
    infos = [*weights.infos.values()]
    for done, info in enumerate(infos):
        progress("verify", done, len(infos))
        if numbers:
            _check_finite(weights, info)
    progress("verify", len(infos), len(infos))


def _check_readable(folder: Path, weights: Weights) -> None:
    """The reference reader accepts every shard too."""
    for file in weights.metadata:
        try:
            with safe_open(folder / file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ConvertAttnError(f"written shard '{file}' cannot be opened: {error}") from None


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
    """No missing and no unexpected names, every shape as in the class; under whichever names transformers takes.

    Args:
        infos: what is, or is about to be, in the checkpoint.

    Raises:
        ConvertAttnError: naming the first tensor that does not fit.
    """
    stored = {info.name: info.shape for info in infos}
    try:
        names = names_in(config, auto_class, stored)
    except Exception as error:  # the class decides what it raises
        raise _refused(auto_class, error) from None
    unknown = next((name for name in stored if name in names.unknown), None)
    if unknown is not None:
        raise ConvertAttnError(
            f"tensor '{unknown}' is not expected by the result's class ({auto_class}): the checkpoint does not "
            "belong to its config.json"
        )
    # of tied names either one will do
    missing = sorted(name for name in names.expected if names.group(name) is None and not names.is_made(name))
    if missing:
        raise ConvertAttnError(
            f"tensor '{missing[0]}' is expected by the result's class ({auto_class}) and missing from the checkpoint; "
            "download it again"
        )
    for group in names.groups:
        _check_shapes(group, names.expected)


def _check_shapes(group: Group, expected: Mapping[str, tuple[int, ...]]) -> None:
    """What stored tensors become has the class's shapes."""
    of = "" if group.plain else f" (made of {len(group.stored)}, '{group.stored[0]}' the first)"
    if group.fault:
        raise ConvertAttnError(
            f"tensor '{group.parameter}'{of} cannot be put together by transformers {transformers.__version__}: "
            f"{group.fault}"
        )
    for name, shape in group.shapes.items():
        if shape != (wanted := expected.get(name, ())):
            raise ConvertAttnError(
                f"tensor '{name}'{of} has shape {list(shape)}, the result's class expects {list(wanted)}"
            )


def _check_finite(weights: Weights, info: TensorInfo) -> None:
    """Every floating-point number of a tensor."""
    for _ in finite_chunks(info, weights.chunks(info.name)):
        pass
