"""What a checkpoint is and what it could become, from its config and headers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.form import SharedHeads
from convert_attn.convert.geometry import Geometry, geometry
from convert_attn.convert.hub import resolve, within
from convert_attn.convert.model_types import architecture
from convert_attn.convert.request import DTYPE_OPTIONS, Request, choose_latent, divisors
from convert_attn.convert.source import Source
from convert_attn.convert.targets import fitting
from convert_attn.convert.tensors import DTYPES

_MLA_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
CONTEXTS = (1024, 8192, 131072)
_HEADERS_SECONDS = 10.0  # a request per shard


@dataclass(frozen=True)
class CacheRow:
    """One form the model could take.

    Attributes:
        name: "MHA", "GQA-8", "MQA", "MLA 512 + 64".
        holders: "class (layout)" of every target that can hold it.
        bytes_per_token: KV cache over all layers.
    """

    name: str
    holders: tuple[str, ...]
    bytes_per_token: int

    def at(self, tokens: int) -> int:
        """KV cache in bytes for a context of that many tokens."""
        return self.bytes_per_token * tokens


@dataclass(frozen=True)
class Inspection:
    """The facts of a checkpoint that decide what it can become.

    Attributes:
        position: "rope" or "learned".
        dtype: safetensors' name of the weights' dtype, which is taken for the cache's.
        parameters: how many numbers the weights hold, None where only config.json could be read.
    """

    model: str
    commit: str | None
    model_type: str
    position: str
    sizes: Geometry
    dtype: str
    parameters: int | None
    rows: tuple[CacheRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        sizes = {key: value for key, value in asdict(self.sizes).items() if key != "inv_freq"}
        rows = [
            {
                "name": row.name,
                "classes": list(row.holders),
                "bytes_per_token": row.bytes_per_token,
                "bytes_at": {str(tokens): row.at(tokens) for tokens in CONTEXTS},
            }
            for row in self.rows
        ]
        return {
            "model": self.model,
            "commit": self.commit,
            "model_type": self.model_type,
            "position": self.position,
            **sizes,
            "dtype": self.dtype,
            "parameters": self.parameters,
            "cache": rows,
        }


def inspect(model: str | Path, revision: str | None = None, subfolder: str | None = None) -> Inspection:
    """Look at a model without downloading its weights.

    Args:
        model: Hub id, local folder (config.json is enough), or sample:NAME.

    Raises:
        ConvertAttnError: not there, or not a model this package knows.
    """
    source = Source.open(resolve(str(model), revision, subfolder, weights=False))
    arch = architecture(source.config["model_type"])
    sizes = geometry(arch, source.config, source.origin.name)
    dtype, parameters = _weights_facts(source)
    return Inspection(
        model=source.origin.name,
        commit=source.origin.commit,
        model_type=arch.model_type,
        position=arch.position,
        sizes=sizes,
        dtype=dtype,
        parameters=parameters,
        rows=tuple(_rows(arch, sizes, DTYPES[dtype].itemsize)),
    )


def _weights_facts(source: Source) -> tuple[str, int | None]:
    """The dtype most numbers have, and how many there are; from config.json where there are no headers."""
    counts = _local_counts(source)
    if not counts and source.origin.commit is not None and not source.origin.subfolder:
        counts = _hub_counts(source)
    if counts:
        return max(counts, key=counts.__getitem__), sum(counts.values())
    named = source.config.get("dtype") or source.config.get("torch_dtype") or "float32"
    return DTYPE_OPTIONS.get(str(named), "F32"), None


def _local_counts(source: Source) -> dict[str, int]:
    """From the headers here; none where only config.json is here, or, from the Hub, not all of the shards."""
    folder = source.origin.folder
    try:
        infos = source.weights.infos.values()
    except ConvertAttnError:
        broken = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
        if broken and source.origin.commit is None:
            raise
        return {}
    counts: dict[str, int] = {}
    for info in infos:
        counts[info.dtype] = counts.get(info.dtype, 0) + info.nbytes // DTYPES[info.dtype].itemsize
    return counts


def _hub_counts(source: Source) -> dict[str, int]:
    """The Hub serves headers by byte range."""
    api, origin = HfApi(), source.origin
    try:
        metadata = within(_HEADERS_SECONDS, lambda: api.get_safetensors_metadata(origin.name, revision=origin.commit))
    except Exception:  # no safetensors, no network in the HTTP client's own words: the count is left out
        return {}
    return {str(dtype): count for dtype, count in metadata.parameter_count.items() if dtype in DTYPES}


def _rows(arch: Architecture, sizes: Geometry, itemsize: int) -> list[CacheRow]:
    """What it is now, every number of shared heads, and MLA at the usual shares of the cache."""
    rows = []
    for kv_heads in reversed(divisors(sizes.num_kv_heads)):
        holders = tuple(
            f"{t.becomes or arch.model_type} ({t.layout})" for t in fitting(arch, sizes, SharedHeads(kv_heads))
        )
        name = "MQA" if kv_heads == 1 else "MHA" if kv_heads == sizes.num_heads else f"GQA-{kv_heads}"
        if kv_heads == sizes.num_kv_heads:
            holders = (f"{arch.model_type} (source)", *holders)
        rows.append(CacheRow(name, holders, sizes.cache_numbers(kv_heads) * itemsize))
    for share in _MLA_SHARES:
        try:
            form = choose_latent(Request(to="mla", cache_ratio=share), arch, sizes)
        except UsageError:  # too small for this share, or a rotation that a latent cannot have
            continue
        holders = tuple(f"{t.becomes} ({t.layout})" for t in fitting(arch, sizes, form))
        if holders:
            name = f"MLA {form.rank}" + (f" + {form.rope_dim}" if form.rope_dim else "")
            rows.append(CacheRow(name, holders, form.cache_numbers(sizes) * itemsize))
    return rows
