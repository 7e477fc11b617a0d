"""The tensors of a checkpoint folder, read one at a time: safetensors or .bin shards."""

from __future__ import annotations

import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert_attn.convert.checkpoint.files import listing, own_file, read_json
from convert_attn.convert.checkpoint.formats import no_weights
from convert_attn.convert.checkpoint.safetensors_format import (
    CHUNK,
    FLOATS,
    TensorInfo,
    file_chunks,
    read_header,
    read_into,
    reason,
)
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.stored_numbers import DTYPE_NAMES, DTYPES, is_finite, tensor_bytes

WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class Weights(ABC):
    """The tensors of a checkpoint, read one at a time.

    Attributes:
        infos: by name.
        metadata: of each shard file, in the order of the shards.
        files: what was opened.
        same: names whose tensor is another's memory in the same layout, as name -> the first of that memory.
    """

    infos: dict[str, TensorInfo]
    metadata: dict[str, dict[str, str]]
    files: tuple[str, ...]
    same: dict[str, str]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Give one tensor, in memory of its own."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[memoryview]:
        """Give one tensor's bytes, piece by piece; a piece may be overwritten by the next."""

    def leave_out(self, names: Container[str]) -> None:
        """Forget tensors that are stored under another name already."""
        self.infos = {name: info for name, info in self.infos.items() if name not in names}

    def shards(self) -> dict[str, list[TensorInfo]]:
        """Give the tensors of each shard file."""
        by_file: dict[str, list[TensorInfo]] = {file: [] for file in self.metadata}
        for info in self.infos.values():
            by_file[info.file].append(info)
        return by_file


class SafetensorsWeights(Weights):
    """Shards in safetensors format, read by byte range: nothing is mapped, nothing stays in memory."""

    def __init__(self, folder: Path, files: list[str], expected: Mapping[str, str] | None) -> None:
        self._folder = folder
        self.files = tuple(files)
        self.infos, self.metadata, self.same = {}, {}, {}
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
        tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
        read_into(tensor_bytes(tensor), self._folder / info.file, info.offset)
        return tensor

    def chunks(self, name: str) -> Iterator[memoryview]:
        info = self.infos[name]
        return file_chunks(self._folder / info.file, info.offset, info.nbytes)


class PickleWeights(Weights):
    """Shards written by torch.save, opened with weights_only (no code runs) and mapped, not read."""

    def __init__(self, folder: Path, files: list[str], expected: Mapping[str, str] | None) -> None:
        self.files = tuple(files)
        self.infos, self.metadata, self.same = {}, {}, {}
        self._tensors: dict[str, Tensor] = {}
        files_of: dict[str, str] = {}
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
                if name in files_of:
                    raise ConvertAttnError(f"tensor '{name}' is in two shards, '{files_of[name]}' and '{file}'")
                files_of[name] = file
                key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
                if tensor.numel() and seen.setdefault(key, name) != name:
                    self.same[name] = seen[key]
                self._tensors[name] = tensor
                self.infos[name] = TensorInfo(
                    name=name, dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), file=target, offset=0
                )
        _check_index(files_of, expected)

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach().clone()

    def chunks(self, name: str) -> Iterator[memoryview]:
        data = tensor_bytes(self._tensors[name])
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def safetensors_name(file: str) -> str:
    """Give the shard's name in the output: pytorch_model-00001-of-00002.bin -> model-00001-of-00002.safetensors."""
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
    """Give the weights of a checkpoint folder: safetensors first, .bin (weights_only) where there is nothing else.

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
    raise no_weights(listing(folder), str(folder))


def finite_chunks(info: TensorInfo, chunks: Iterable[memoryview]) -> Iterator[memoryview]:
    """Pass a tensor's bytes on, piece by piece, each when its numbers have been looked at.

    Raises:
        ConvertAttnError: one that is not finite.
    """
    for chunk in chunks:
        if info.dtype in FLOATS and not is_finite(torch.frombuffer(chunk, dtype=DTYPES[info.dtype])):
            raise ConvertAttnError(
                f"tensor '{info.name}' has values that are NaN or infinite: the source checkpoint is broken "
                f"(download it again) or its numbers do not fit {info.dtype} (give another --dtype)"
            )
        yield chunk
