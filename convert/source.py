"""A checkpoint as lazy named tensors: a local folder of safetensors or .bin shards, at a pinned revision."""

from __future__ import annotations

import json
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.tensors import (
    CHUNK,
    DTYPE_NAMES,
    DTYPES,
    TensorInfo,
    file_chunks,
    read_header,
    reason,
    tensor_bytes,
)

# What is carried over beside the weights: tokenizer, generation config, licence. Never code.
SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")
# config.json is written anew; the others tell of the source's own training and evaluation
_NOT_CARRIED = frozenset(
    {
        "config.json",
        "training.json",
        "trainer_state.json",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
    }
)
_MAX_JSON = 100_000_000  # as for a safetensors header
# keys of config.json that say how much memory classes and configs take, and more than any model has of them
_COUNTS = ("_size", "_dim", "_layers", "_layer", "_heads", "_head", "_embd", "_inner", "_positions", "_labels")
_MAX_COUNT = 10_000_000
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        name: as the user typed it (Hub id, folder or sample:NAME).
        folder: where its files are.
        commit: the Hub commit the files belong to, None for a local folder.
        subfolder: where below the repository or folder they are.
    """

    name: str
    folder: Path
    commit: str | None = None
    subfolder: str = ""

    @property
    def label(self) -> str:
        """The name to publish: a folder's own name, never the path to it."""
        return self.name if self.commit or self.name.startswith("sample:") else self.short_name

    @property
    def short_name(self) -> str:
        """The name that outputs are called after."""
        plain = self.name.removeprefix("sample:").rstrip("/")
        return (Path(plain).name or plain) if plain not in (".", "..", "") else self.folder.resolve().name


class Weights(ABC):
    """The tensors of a checkpoint, read one at a time.

    Attributes:
        infos: by name.
        metadata: of each shard file, in the order of the shards.
    """

    infos: dict[str, TensorInfo]
    metadata: dict[str, dict[str, str]]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes | memoryview]:
        """One tensor's bytes, piece by piece."""

    def shards(self) -> dict[str, list[TensorInfo]]:
        """The tensors of each shard file."""
        by_file: dict[str, list[TensorInfo]] = {file: [] for file in self.metadata}
        for info in self.infos.values():
            by_file[info.file].append(info)
        return by_file


class SafetensorsWeights(Weights):
    """Shards in safetensors format, read by byte range: nothing is mapped, nothing stays in memory."""

    def __init__(self, folder: Path, files: list[str], expected: Mapping[str, str] | None) -> None:
        self._folder = folder
        self.infos, self.metadata = {}, {}
        for file in files:
            infos, self.metadata[file] = read_header(folder / file)
            for info in infos:
                if info.name in self.infos:
                    raise ConvertAttnError(
                        f"tensor '{info.name}' is in two shards, '{self.infos[info.name].file}' and '{file}'"
                    )
                self.infos[info.name] = info
        _check_index(self.infos, expected)

    def read(self, name: str) -> Tensor:
        info = self.infos[name]
        buffer = bytearray()
        for chunk in self.chunks(name):
            buffer += chunk
        flat = torch.frombuffer(buffer, dtype=DTYPES[info.dtype]) if buffer else torch.empty(0)
        return flat.to(DTYPES[info.dtype]).reshape(info.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        info = self.infos[name]
        return file_chunks(self._folder / info.file, info.offset, info.nbytes)


class PickleWeights(Weights):
    """Shards written by torch.save, opened with weights_only (no code runs) and mapped, not read."""

    def __init__(self, folder: Path, files: list[str], expected: Mapping[str, str] | None) -> None:
        self.infos, self.metadata = {}, {}
        self._tensors: dict[str, Tensor] = {}
        names: dict[str, str] = {}
        seen: dict[tuple[object, ...], str] = {}
        for file in files:
            target = safetensors_name(file)
            self.metadata[target] = {"format": "pt"}
            for name, tensor in _load_pickle(folder / file).items():
                if not _is_plain(name, tensor):
                    raise ConvertAttnError(
                        f"shard '{file}' holds '{name}' of type "
                        f"{getattr(tensor, 'dtype', type(tensor).__name__)}, expected a plain tensor"
                    )
                if name in names:
                    raise ConvertAttnError(f"tensor '{name}' is in two shards, '{names[name]}' and '{file}'")
                names[name] = file
                key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
                if tensor.numel() and seen.setdefault(key, name) != name:
                    continue  # the same memory under two names: tied weights are stored once
                self._tensors[name] = tensor
                self.infos[name] = TensorInfo(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), target, 0)
        _check_index(names, expected)

    def read(self, name: str) -> Tensor:
        return self._tensors[name].clone()

    def chunks(self, name: str) -> Iterator[memoryview]:
        data = tensor_bytes(self._tensors[name])
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def own_file(folder: Path, name: str) -> Path:
    """A file of a checkpoint, there or not.

    A source is not trusted: what it links to elsewhere on this machine must not end up in a result that is published.
    The Hub's cache is another matter: its snapshots are links to the blobs beside them.

    Raises:
        UsageError: it is a link that leads out of the folder.
    """
    path = folder / name
    if path.is_symlink():
        home, target = folder.resolve(), path.resolve()
        blobs = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
        if not any(target.is_relative_to(place) for place in (home, *blobs)):
            raise UsageError(f"'{name}' in {folder} is a link out of the folder, which is not followed: copy the file")
    return path


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        ValueError, RecursionError: it is none.
    """
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"it has more than {_MAX_JSON} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def safetensors_name(file: str) -> str:
    """The shard's name in the output: pytorch_model-00001-of-00002.bin -> model-00001-of-00002.safetensors."""
    if not file.endswith(".bin"):
        return file
    return "model" + file.removeprefix("pytorch_model").removesuffix(".bin") + ".safetensors"


def _load_pickle(path: Path) -> dict[str, Any]:
    """torch.load with weights_only, mapped where the file format allows it."""
    for mmap in (True, False):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on pickle protocols: what cannot be read is an error below
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            first = str(error).strip().splitlines()[0]
            raise ConvertAttnError(
                f"shard '{path.name}' holds more than tensors and was not opened ({first}); "
                "convert it to safetensors in a place you trust"
            ) from None
        except Exception as error:  # a damaged pickle can raise anything
            if mmap and "mmap" in str(error):
                continue  # the format of torch < 1.6 cannot be mapped
            raise ConvertAttnError(
                f"shard '{path.name}' cannot be read: truncated or no torch checkpoint; download it again"
            ) from None
        if isinstance(loaded, dict):
            return loaded
        raise ConvertAttnError(f"shard '{path.name}' holds {type(loaded).__name__}, expected a state dict")
    raise AssertionError("unreachable")


def _is_plain(name: object, tensor: object) -> bool:
    """A name, and numbers in memory: no nested dict, no sparse tensor, none without data."""
    return (
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.dtype in DTYPE_NAMES
        and tensor.layout == torch.strided
        and not tensor.is_meta
    )


def _check_index(found: Container[str], expected: Mapping[str, str] | None) -> None:
    """Every tensor that the index promises is there."""
    missing = [] if expected is None else sorted(name for name in expected if name not in found)
    if missing:
        raise ConvertAttnError(
            f"the index promises tensor '{missing[0]}' in shard '{(expected or {})[missing[0]]}', "
            "which does not have it; download the checkpoint again"
        )


def _index_files(folder: Path, index: Path) -> tuple[list[str], dict[str, str]]:
    """The shard files an index names, in order, each checked to be a file of this folder."""
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    try:
        weight_map = read_json(index)["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertAttnError(f"'{index.name}' is no shard index ({reason(error)}); download it again") from None
    if not files:
        raise ConvertAttnError(f"'{index.name}' names no shard; download it again")
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or "\\" in file:
            raise ConvertAttnError(f"'{index.name}' names shard {file!r}, which is not a file of its folder")
        if not file.endswith(suffix):
            raise ConvertAttnError(f"'{index.name}' names shard '{file}', which is no {suffix} file")
        if not own_file(folder, file).is_file():
            raise ConvertAttnError(
                f"'{index.name}' names shard '{file}', which is missing from {folder}; download it again"
            )
    return files, weight_map


def open_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder: safetensors first, .bin (weights_only) where there is nothing else.

    Raises:
        ConvertAttnError: no weights, or an index that names what is not there.
    """
    for index_name, kind in zip(WEIGHT_INDEXES, (SafetensorsWeights, PickleWeights), strict=True):
        single = index_name.removesuffix(".index.json")
        if own_file(folder, single).is_file():
            return kind(folder, [single], None)
        if (folder / index_name).is_file():
            files, weight_map = _index_files(folder, own_file(folder, index_name))
            return kind(folder, files, weight_map)
    raise ConvertAttnError(
        f"no weights in {folder}: expected model.safetensors, model.safetensors.index.json or pytorch_model.bin"
    )


@dataclass(frozen=True)
class Source:
    """A checkpoint: its origin, its config.json as it stands, and its weights (opened on first use)."""

    origin: Origin
    config: dict[str, Any]

    @classmethod
    def open(cls, origin: Origin) -> Source:
        """Read config.json.

        Raises:
            UsageError: no model there, or one that cannot be a source (quantised).
        """
        path = own_file(origin.folder, "config.json")
        if not path.is_file():
            raise UsageError(f"{origin.folder} has no config.json: give a folder with a transformers checkpoint")
        try:
            config = read_json(path)
        except (ValueError, RecursionError) as error:
            raise ConvertAttnError(f"config.json of '{origin.name}' is no JSON ({error})") from None
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ConvertAttnError(f"config.json of '{origin.name}' has no model_type: it is no transformers model")
        classes = config.get("architectures") or []
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ConvertAttnError(
                f"config.json of '{origin.name}' has architectures {classes!r}, expected class names"
            )
        for key, value in config.items():
            if isinstance(value, int) and value > _MAX_COUNT and key.endswith(_COUNTS):
                raise ConvertAttnError(f"config.json of '{origin.name}' has {key} {value}, which no model has")
        if quantised := config.get("quantization_config"):
            named = quantised.get("quant_method") if isinstance(quantised, dict) else None
            method = named or "unknown method"
            raise UsageError(
                f"'{origin.name}' is quantised ({method}): convert the original in fp32, fp16 or bf16 "
                "and quantise the result"
            )
        return cls(origin, config)

    @cached_property
    def weights(self) -> Weights:
        """The tensors."""
        return open_weights(self.origin.folder)

    def side_files(self) -> list[Path]:
        """Tokenizer, generation config and the like: plain files at the top of the folder, no code, no weights."""
        folder = self.origin.folder
        found = {own_file(folder, path.name) for name in SIDE_FILES for path in folder.glob(name) if path.is_file()}
        # indexes name the source's shards, in this format or another
        carried = (path for path in found if path.name not in _NOT_CARRIED and ".index." not in path.name)
        return sorted(carried)

    def card_text(self) -> str | None:
        """The source's README.md, None where it has none."""
        path = own_file(self.origin.folder, "README.md")
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
