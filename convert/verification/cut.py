"""A checkpoint cut to its first, middle and last block: what of a large model is run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from convert_attn import modeling
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.cache_form import HEADS_BY_LAYER, LAYER_GATE
from convert_attn.convert.checkpoint.safetensors_format import TensorInfo
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.checkpoint.writer import ShardWriter
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.classes.language_model import with_language_model
from convert_attn.convert.stored_numbers import tensor_bytes

SMALL = 100_000_000  # bytes: a model of this size is run whole
_BLOCK = re.compile(r"^(.*?\.)(\d+)(\..*)$|^()(\d+)(\..*)$")
_SHARD = "model.safetensors"
# lists that may be as long as there are layers and are not one entry a layer
_NOT_BY_LAYER = frozenset({"architectures", "bos_token_id", "eos_token_id", "pad_token_id"})
# blocks that read their own number, which a cut would change
_NUMBERED = ("scale_attn_by_inverse_layer_idx",)
# what a loader would act upon; the cut is of plain weights in the class of `model_type`
_LEFT_OUT = ("auto_map", "quantization_config", "compression_config")


@dataclass(frozen=True)
class Blocks:
    """The decoder blocks in the names of a checkpoint's tensors.

    Attributes:
        stem: what their names start with, before the number ("model.layers.").
        count: how many there are.
    """

    stem: str
    count: int


@dataclass(frozen=True)
class Changed:
    """A tensor that is another one in a cut: its dtype there, and what reads it."""

    dtype: str
    read: Callable[[], Tensor]


def find_blocks(names: Iterable[str]) -> Blocks:
    """Find the longest run of numbered tensors; a stem of "" and no blocks where there is none."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        found = _BLOCK.match(name)
        if found:
            stem, number = (found[1], found[2]) if found[1] is not None else (found[4], found[5])
            numbers.setdefault(stem, set()).add(int(number))
    if not numbers:
        return Blocks("", 0)
    stem = max(numbers, key=lambda key: len(numbers[key]))
    return Blocks(stem, max(numbers[stem]) + 1)


def blocks_of(source: Source) -> Blocks:
    """Find the blocks of a checkpoint; of a larger model those of the language model inside it."""
    infos, known = source.weights.infos, source.names
    if source.within is None:
        return find_blocks(infos)
    groups = ((name, known.group_of(name)) for name in infos)
    return find_blocks(name for name, group in groups if group and group.parameter.startswith(known.base))


def checked_layers(config: dict[str, Any], layers: int, nbytes: int) -> tuple[int, ...]:
    """List the layers that are run: all of a small model, else the first, the middle and the last.

    Where some look at images, the first of them too.
    """
    if layers <= 3 or nbytes <= SMALL:
        return tuple(range(layers))
    if any(config.get(key) for key in _NUMBERED):
        return 0, 1, 2
    return tuple(sorted({0, layers // 2, layers - 1, *_seeing(config)[:1]}))


def probed_layers(config: dict[str, Any], checked: Sequence[int]) -> list[int]:
    """List of the layers that are run those whose attention is asked."""
    return sorted({checked[0], checked[len(checked) // 2], checked[-1], *_seeing(config)[:1]})


def _seeing(config: dict[str, Any]) -> list[int]:
    """The layers that look at images, in order."""
    arch = architectures().get(config["model_type"])
    if arch is None or arch.seeing is None:
        return []
    return sorted(arch.of(typed_config(config, "the checkpoint")).seeing_layers)


def write_cut(
    source: Source,
    layers: Sequence[int],
    folder: Path,
    code: Path | None = None,
    changed: Mapping[str, Changed] | None = None,
) -> None:
    """Write a folder with these blocks, renumbered from 0, and all that is outside the blocks, as it is stored.

    Args:
        source: any checkpoint whose weights can be opened; its side files are not carried but for the generation
            config.
        code: where the modeling files come from that its config names; None: it is read in the class of its
            model_type, of transformers or of this package.
        changed: tensors of the source, by name, that are others in the cut.
    """
    weights, blocks = source.weights, blocks_of(source)
    rows = _gate_rows(source, layers, blocks.count)
    changed = dict(changed or {}) | rows
    number = {str(layer): n for n, layer in enumerate(layers)}
    infos: list[TensorInfo] = []
    origin: dict[str, str] = {}
    for info in weights.infos.values():
        name = info.name
        if blocks.count and name.startswith(blocks.stem):
            layer, dot, rest = name.removeprefix(blocks.stem).partition(".")
            if layer not in number:
                continue
            name = f"{blocks.stem}{number[layer]}{dot}{rest}"
        origin[name] = info.name
        dtype = changed[info.name].dtype if info.name in changed else info.dtype
        shape = (1 + len(layers), *info.shape[1:]) if info.name in rows else info.shape
        infos.append(replace(info, name=name, dtype=dtype, shape=shape, file=_SHARD))
    folder.mkdir()
    writer = ShardWriter(folder, {_SHARD: infos}, {}, durable=False)
    try:
        for info in infos:
            other = changed.get(origin[info.name])
            chunks = weights.chunks(origin[info.name]) if other is None else [tensor_bytes(other.read())]
            writer.put(info.name, chunks)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    config = _cut_whole(source, layers, blocks.count)
    files: list[Path] = []
    if code is not None and "auto_map" in source.whole:
        config["auto_map"], files = source.whole["auto_map"], sorted(code.glob("*.py"))
    elif config["model_type"] in modeling.FAMILIES:
        config["auto_map"] = modeling.auto_map(config["model_type"])
        files = modeling.source_files(config["model_type"])
    for path in files:
        shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(config))
    generation = source.origin.folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)


def _gate_rows(source: Source, layers: Sequence[int], count: int) -> dict[str, Changed]:
    """What mixes the states of all layers has rows for the embedding and the layers that are left."""
    weights, kept = source.weights, [0, *(layer + 1 for layer in layers)]

    def read(name: str) -> Tensor:
        return weights.read(name)[kept]

    gates = (info for info in weights.infos.values() if LAYER_GATE in info.name.split("."))
    return {info.name: Changed(info.dtype, partial(read, info.name)) for info in gates if len(layers) < count}


def _cut_whole(source: Source, layers: Sequence[int], count: int) -> dict[str, Any]:
    """config.json for these layers, the language model's part of it where it is of a larger one."""
    if source.within is None:
        return cut_config(source.config, layers, count)
    plain = {key: value for key, value in source.whole.items() if key not in _LEFT_OUT}
    config = cut_config(source.config, layers, count)
    changed = {key: value for key, value in config.items() if source.config.get(key) != value}
    return with_language_model(plain, source.within, changed, set())


def cut_config(raw: dict[str, Any], layers: Sequence[int], count: int) -> dict[str, Any]:
    """Cut a config.json to these layers: their number, and lists with one entry a layer."""
    config = {key: value for key, value in raw.items() if key not in _LEFT_OUT}
    if len(layers) == count:
        return config
    typed = typed_config(raw, "the checkpoint")
    kinds = getattr(typed, "layer_types", None)
    if kinds:
        config["layer_types"] = list(kinds)  # where it follows from the number of layers, it must not follow anew
    for key, value in config.items():
        if isinstance(value, list) and len(value) == count and key not in _NOT_BY_LAYER:
            config[key] = [value[layer] for layer in layers]
    arch = architectures().get(raw["model_type"])
    if arch is not None and arch.seeing is not None:
        seeing = _seeing(raw)
        config[arch.seeing.layers] = [number for number, layer in enumerate(layers) if layer in seeing]
    if "attention_types" in config:  # the same by kinds of layers and how often they come
        config["attention_types"] = [[[typed.attention_layers[layer]], 1] for layer in layers]
    own = typed.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key in {own, "num_hidden_layers"} & config.keys() | {own}:
        config[key] = len(layers)
    if "first_k_dense_replace" in config:
        config["first_k_dense_replace"] = sum(layer < raw["first_k_dense_replace"] for layer in layers)
    ranks = config.get("kv_lora_ranks")
    if ranks:
        config["kv_lora_rank"] = max(ranks)
    heads = config.get(HEADS_BY_LAYER)
    if heads:
        config["num_key_value_heads"] = max(heads)
    return config
