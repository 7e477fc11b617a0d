"""The safetensors format: what is in a file, checked by its header, and its bytes, piece by piece.

safetensors' own reader maps whole files, which counts as resident memory, and its writer wants all tensors at
once; a streaming conversion needs byte ranges. Format: 8 bytes little-endian header length, a JSON header,
then the tensors' bytes without gaps. Nothing large is imported: what torch makes of the bytes is in
`convert.stored_numbers`.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from convert_attn.convert.errors import ConvertAttnError, UsageError

SIZES = {  # bytes of a number
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
}
FLOATS = ("F64", "F32", "F16", "BF16")

_LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # the limit of the reference implementation
CHUNK = 2**20  # read, looked at and written while it is in the processor's cache


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a checkpoint, not yet read.

    Attributes:
        dtype: safetensors' name, e.g. "BF16".
        file: the shard's file name.
        offset: bytes from the file's start.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * SIZES[self.dtype]


def read_header(path: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    """Give the tensors of one file in the order of their bytes, and the file's metadata.

    Raises:
        ConvertAttnError: truncated, or a header that lies.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix == _LFS_POINTER[:8] and prefix + file.read(len(_LFS_POINTER) - 8) == _LFS_POINTER:
            raise ConvertAttnError(f"shard '{path.name}' is a Git LFS pointer, not the file: run `git lfs pull`")
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ConvertAttnError(
                f"shard '{path.name}' is no whole safetensors file: its header should have {length} bytes, "
                f"the file has {size}; download it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("it is no JSON object")
        metadata = header.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata is not text")
        infos = [_tensor_info(name, entry, path.name, 8 + length) for name, entry in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConvertAttnError(
            f"shard '{path.name}' has a header that cannot be read ({reason(error)}); download it again"
        ) from None
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    _check_layout(path.name, infos, 8 + length, size)
    return infos, metadata


def reason(error: Exception) -> str:
    """Tell what is wrong with a JSON file, in words: a KeyError alone says only the key."""
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ, so that no tensor hides another."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _tensor_info(name: str, entry: dict[str, Any], file: str, start: int) -> TensorInfo:
    """One header entry, checked in itself."""
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"tensor '{name}' has a shape or offsets that are no counts")
    if entry["dtype"] not in SIZES:
        packed = ": its weights are quantised" if str(entry["dtype"]).startswith(("F4", "F6", "I4", "U4")) else ""
        raise UsageError(
            f"tensor '{name}' in shard '{file}' has dtype {entry['dtype']}, which cannot be converted{packed}; "
            "use the original in fp32, fp16 or bf16"
        )
    info = TensorInfo(name=name, dtype=entry["dtype"], shape=shape, file=file, offset=start + begin)
    if end - begin != info.nbytes:
        raise ValueError(f"tensor '{name}' spans {end - begin} bytes where its shape {list(shape)} needs {info.nbytes}")
    return info


def _check_layout(file: str, infos: list[TensorInfo], start: int, size: int) -> None:
    """Tensors follow each other without gap or overlap, up to the file's end."""
    position = start
    for info in infos:
        if info.offset != position:
            raise ConvertAttnError(
                f"shard '{file}' has a header that cannot be true: tensor '{info.name}' starts at byte "
                f"{info.offset}, expected {position}; download it again"
            )
        position += info.nbytes
    if position != size:
        raise ConvertAttnError(
            f"shard '{file}' is truncated or has bytes left over: its header describes {position} bytes, "
            f"the file has {size}; download it again"
        )


def build_header(infos: list[TensorInfo], metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """Prefix and header for tensors to be written in this order, and where each one starts in the file."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    begins: dict[str, int] = {}
    position = 0
    for info in infos:
        begins[info.name] = position
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # tensors start aligned
    prefix = struct.pack("<Q", len(raw)) + raw
    return prefix, {name: len(prefix) + begin for name, begin in begins.items()}


def file_chunks(path: Path, offset: int, nbytes: int) -> Iterator[memoryview]:
    """Give a byte range of a file, piece by piece; a piece is overwritten by the next.

    Raises:
        ConvertAttnError: the file ended early.
    """
    buffer = memoryview(bytearray(min(CHUNK, nbytes)))
    with path.open("rb", buffering=0) as file:
        _read_ahead(file, offset, nbytes)
        file.seek(offset)
        for start in range(0, nbytes, CHUNK):
            piece = buffer[: min(CHUNK, nbytes - start)]
            _fill(piece, file, path)
            yield piece


def read_into(buffer: memoryview, path: Path, offset: int) -> None:
    """Fill a buffer from a file.

    Raises:
        ConvertAttnError: the file ended early.
    """
    with path.open("rb", buffering=0) as file:
        _read_ahead(file, offset, len(buffer))
        file.seek(offset)
        _fill(buffer, file, path)


def _read_ahead(file: FileIO, offset: int, nbytes: int) -> None:
    """Have the system read a whole tensor while its first pieces are worked on: by itself it reads 128 KB ahead."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a hint: some file systems know of none
            os.posix_fadvise(file.fileno(), offset, nbytes, os.POSIX_FADV_WILLNEED)


def _fill(buffer: memoryview, file: FileIO, path: Path) -> None:
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise ConvertAttnError(f"shard '{path.name}' became shorter while it was read")
        buffer = buffer[count:]
