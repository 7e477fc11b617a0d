"""What a folder or repository holds where the weights or the config of a transformers checkpoint are not there.

Everything is told from the names of the files alone, so that it is known of a repository before any download.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import ConvertAttnError, UsageError

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER = re.compile(r"(adapter_config\.json|(adapter_model|pytorch_adapter)\..*)")
_MERGE = "load it with peft, call `merge_and_unload()`, save that with `save_pretrained` and convert what was saved"
_SHARD = re.compile(r"(?P<stem>(?:pytorch_)?model)-(?P<number>\d+)-of-(?P<count>\d+)\.(?P<suffix>safetensors|bin)")
_PLAIN = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")
# model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.safetensors
_VARIANT = re.compile(
    r"(?:pytorch_)?model(?:\.(?P<one>[\w-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<two>[\w-]+))?\.(?:safetensors|bin)"
)
_PARTIAL = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download", ".tmp")

_TRANSFORMERS_5 = "transformers 5 reads it no more: load it with transformers 4 and save it with `save_pretrained`"
# (what the name looks like, what it is, what to do), the most telling first
_OTHERS: tuple[tuple[str, str, str], ...] = (
    (r".*\.gguf", "GGUF", "give the transformers checkpoint that it was made from"),
    (r"(ggml|ggjt).*\.bin|.*\.ggml", "GGML", "give the transformers checkpoint that it was made from"),
    (r"tf_model.*\.h5|.*\.keras", "TensorFlow weights", _TRANSFORMERS_5),
    (r"flax_model.*\.msgpack", "Flax weights", _TRANSFORMERS_5),
    (r".*\.ckpt\.(index|meta|data.*)", "a TensorFlow checkpoint", _TRANSFORMERS_5),
    (r"(.*/)?.*\.onnx(_data)?", "ONNX", "give the transformers checkpoint that it was exported from"),
    (r"(.*/)?openvino_model.*", "OpenVINO", "give the transformers checkpoint that it was exported from"),
    (r"rust_model\.ot", "rust-bert's weights", "give the same model in safetensors"),
    (
        r"(.*/)?consolidated.*\.(pth|safetensors)",
        "its maker's own format",
        "give the repository of the same model for transformers (often its name with -hf), or convert it with the "
        "script that transformers has for this model type",
    ),
    (
        r"(.*/)?(mp_rank_\d+.*|.*zero_pp_rank_.*|.*optim_states)\.pt|zero_to_fp32\.py",
        "DeepSpeed's training state",
        "run its `zero_to_fp32.py` and save the result with `save_pretrained`",
    ),
    (
        r"(.*/)?.*\.distcp",
        "a distributed (FSDP) training state",
        "merge it with `accelerate merge-weights` and save the result with `save_pretrained`",
    ),
    (r".*\.nemo", "a NeMo archive", "convert it to transformers with NeMo's script"),
    (
        r".*\.(pth|pt|ckpt|pkl)",
        "a torch file of another name",
        "load it into its class and save that with `save_pretrained`",
    ),
)


def _top(names: Collection[str]) -> list[str]:
    return sorted(name for name in names if "/" not in name)


def check_no_adapter(names: Collection[str], where: str) -> None:
    """Refuse a PEFT adapter, alone or beside weights, to which transformers would add it where peft is installed.

    Raises:
        UsageError: there is one.
    """
    if ADAPTER_CONFIG not in names:
        return
    if any(_PLAIN.fullmatch(name) for name in names):
        raise UsageError(
            f"'{where}' has a PEFT adapter ({ADAPTER_CONFIG}) beside its weights, which transformers adds to them when "
            f"it loads the folder: to keep it, {_MERGE}; if it is merged already, remove {ADAPTER_CONFIG} and "
            "adapter_model.*"
        )
    raise UsageError(f"'{where}' is a PEFT adapter ({ADAPTER_CONFIG}), not a model: {_MERGE}")


def no_weights(names: Collection[str], where: str) -> ConvertAttnError:
    """Give the error for a checkpoint without weights that can be read.

    Args:
        names: of all files, those in folders with their path.
    """
    found = (
        _adapter(names) or _lone_shards(names) or _variant(names) or _partial(names) or _other(names) or _below(names)
    )
    expected = "expected model.safetensors, model.safetensors.index.json or pytorch_model.bin"
    if found is None:
        return ConvertAttnError(f"no weights in {where}: {expected}")
    return UsageError(f"no weights in {where} that can be read: {expected}, found {found}")


def no_folder(file: Path) -> UsageError:
    """Give the error for a file where a folder is expected."""
    found = _other([file.name]) if not _PLAIN.fullmatch(file.name) and file.name != "config.json" else None
    said = f"'{file}' is a file: give the folder that holds the checkpoint"
    return UsageError(f"{said} (found {found})" if found else f"{said}, {file.absolute().parent}")


def no_config(names: Collection[str], where: str) -> UsageError:
    """Give the error for a folder without config.json."""
    if "model_index.json" in names:
        found: str | None = (
            "model_index.json: it is a diffusers pipeline, which keeps no KV cache; a language model among its parts "
            "has a folder of its own"
        )
    else:
        found = (
            _adapter(names)
            or _sentence_transformer(names)
            or _other(names)
            or ("params.json: it is in its maker's own format" if "params.json" in names else None)
            or _below(names)
        )
    sentence = f"{where} has no config.json: give a folder with a transformers checkpoint"
    return UsageError(f"{sentence} (found {found})" if found else sentence)


def no_model_type(config: Any, name: str) -> ConvertAttnError:
    """Give the error for a config.json without model_type, which other libraries write."""
    keys = set(config) if isinstance(config, dict) else set()
    said = f"config.json of '{name}' has no model_type: it is no transformers model"
    if "_diffusers_version" in keys or ("_class_name" in keys):
        return UsageError(f"{said} but a diffusers model ({config.get('_class_name')}), which keeps no KV cache")
    if "pretrained_cfg" in keys or {"architecture", "num_features"} <= keys:
        return UsageError(f"{said} but a timm model ({config.get('architecture')}), which keeps no KV cache")
    if "model_cfg" in keys and "preprocess_cfg" in keys:
        return UsageError(f"{said} but an OpenCLIP model, which keeps no KV cache")
    if "peft_type" in keys:
        return UsageError(f"{said} but the settings of a PEFT adapter: {_MERGE}")
    if {"dim", "n_layers", "n_heads"} <= keys:
        return UsageError(f"{said}: it looks like its maker's own format; give the checkpoint for transformers")
    return ConvertAttnError(said)


def _adapter(names: Collection[str]) -> str | None:
    found = next((name for name in _top(names) if _ADAPTER.fullmatch(name)), None)
    return None if found is None else f"{found}: an adapter, not a model; {_MERGE}"


def _lone_shards(names: Collection[str]) -> str | None:
    """Shards, whose index is missing or they would have been read."""
    shards = [match for match in map(_SHARD.fullmatch, _top(names)) if match]
    if not shards:
        return None
    first = shards[0]
    index = f"{first['stem']}.{first['suffix']}.index.json"
    have = {int(match["number"]) for match in shards if match["suffix"] == first["suffix"]}
    missing = [number for number in range(1, int(first["count"]) + 1) if number not in have][:1]
    width = len(first["number"])
    also = "".join(
        f" and {first['stem']}-{number:0{width}d}-of-{first['count']}.{first['suffix']}" for number in missing
    )
    return f"{first[0]}, a shard without its index: download {index}{also} too"


def _variant(names: Collection[str]) -> str | None:
    for name in _top(names):
        match = _VARIANT.fullmatch(name)
        if match and (variant := match["one"] or match["two"]) and not _PLAIN.fullmatch(name):
            plain = name.replace(f".{variant}", "", 1)
            return (
                f"{name}, the variant '{variant}': if it is the one to convert, rename it to {plain} "
                "(and its index, if any, with the names in it)"
            )
    return None


def _partial(names: Collection[str]) -> str | None:
    found = next((name for name in _top(names) if name.endswith(_PARTIAL)), None)
    return None if found is None else f"{found}, a download that was broken off: download the checkpoint again"


def _other(names: Collection[str]) -> str | None:
    for pattern, what, remedy in _OTHERS:
        if found := next((name for name in sorted(names) if re.fullmatch(pattern, name)), None):
            return f"{found}: {what}, which is not read; {remedy}"
    for name in _top(names):
        if name.endswith(".safetensors"):
            return f"{name}: if that is the whole model, rename it to model.safetensors"
        if name.endswith(".bin") and not name.startswith(("training_args", "optimizer", "scheduler")):
            return f"{name}: if that is the whole model, rename it to pytorch_model.bin"
    return None


def _sentence_transformer(names: Collection[str]) -> str | None:
    """Its transformer used to have a folder of its own."""
    if "modules.json" not in names:
        return None
    inside = [name.removesuffix("/config.json") for name in sorted(names) if name.endswith("_Transformer/config.json")]
    hint = f"; its transformer is in {inside[0]}: give --subfolder {inside[0]}" if inside else ""
    return f"modules.json: it is a sentence-transformers folder{hint}"


def _below(names: Collection[str]) -> str | None:
    """A checkpoint in a folder below."""
    known: Sequence[str] = sorted(name for name in names if "/" in name and _PLAIN.fullmatch(name.rpartition("/")[2]))
    if not known:
        return None
    folder = known[0].rpartition("/")[0]
    return f"{known[0]}: give --subfolder {folder} for the model there"
