"""What a checkpoint is and what it could become, from its config and headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads
from convert_attn.convert.archs.class_reading import class_biases, facts_of
from convert_attn.convert.archs.geometry import Geometry, geometry
from convert_attn.convert.checkpoint.names import check_names_of_blocks
from convert_attn.convert.checkpoint.quantised import QuantisedError, check_plain, leftover_warning
from convert_attn.convert.checkpoint.resolve import resolve, within
from convert_attn.convert.checkpoint.safetensors_format import SIZES, TensorInfo
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.inspection.for_engine import latent_forms
from convert_attn.convert.inspection.serving import named, takes
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.request import DTYPE_OPTIONS, Request
from convert_attn.convert.planning.sizes import choose_latent, common_heads, divisors
from convert_attn.convert.serving_rules import Engine
from convert_attn.convert.targets import experiments, fitting, result_arch
from convert_attn.convert.targets.base import Blueprint, Config, Target

_MLA_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
CONTEXTS = (1024, 8192, 131072)
_HEADERS_SECONDS = 10.0  # a request per shard


@dataclass(frozen=True, kw_only=True)
class CacheRow:
    """One form the model could take.

    Attributes:
        name: "MHA", "GQA-8", "MQA", "MLA 512 + 64".
        holders: "class (layout)" of every target that can hold it.
        bytes_per_token: KV cache over all layers; 0 of an encoder, which keeps none.
        fewer: parameters than the source has.
        most: tokens that the cache holds, however many there were; None: all.
        experimental: what an experimental target makes of the model, "" where the form is none.
    """

    name: str
    holders: tuple[str, ...]
    bytes_per_token: int
    fewer: int = 0
    most: int | None = None
    experimental: str = ""

    def at(self, tokens: int) -> int:
        """KV cache in bytes for a context of that many tokens."""
        return self.bytes_per_token * (tokens if self.most is None else min(tokens, self.most))


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The facts of a checkpoint that decide what it can become.

    Attributes:
        position: "rope", "learned" or "alibi".
        dtype: safetensors' name of the weights' dtype, which is taken for the cache's.
        parameters: how many numbers the weights hold, None where only config.json could be read.
        warnings: sentences for the user.
    """

    model: str
    commit: str | None
    model_type: str
    position: str
    sizes: Geometry
    dtype: str
    parameters: int | None
    rows: tuple[CacheRow, ...]
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        left = {"position", "positions"} | (set() if self.sizes.kv_heads else {"kv_heads"})
        sizes = {key: value for key, value in asdict(self.sizes).items() if key not in left}
        sizes |= {"rope_type": self.sizes.rope_type, "rotary_scale": self.sizes.rotary_scale}
        rows = [
            {
                "name": row.name,
                "classes": list(row.holders),
                "bytes_per_token": row.bytes_per_token,
                "fewer_parameters": row.fewer,
                **({"experimental": row.experimental} if row.experimental else {}),
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
            "warnings": list(self.warnings),
        }


def inspect(
    model: str | Path, revision: str | None = None, subfolder: str | None = None, engine: str | None = None
) -> Inspection:
    """Look at a model without downloading its weights.

    Args:
        model: Hub id, local folder (config.json is enough), or sample:NAME.
        engine: show only what this engine serves by a class of its own with a small cache; a name that --for takes.

    Raises:
        ConvertAttnError: not there, not a model this package knows, or one that is quantised.
    """
    asked = None if engine is None else named(engine)
    source = Source.open(resolve(str(model), revision, subfolder, weights=False))
    arch = architecture(source.config["model_type"])
    arch = arch.of(typed_config(source.config, source.origin.name))
    sizes = geometry(arch, source.config, source.origin.name)
    dtype, parameters = _weights_facts(source, arch)
    return Inspection(
        model=source.origin.name,
        commit=source.origin.commit,
        model_type=arch.model_type,
        position=sizes.position.kind,
        sizes=sizes,
        dtype=dtype,
        parameters=parameters,
        rows=tuple(_rows(_Look(source, arch, sizes, asked), SIZES[dtype])),
        warnings=(leftover_warning(source.leftovers, parameters is not None),) if source.leftovers else (),
    )


def _weights_facts(source: Source, arch: Architecture) -> tuple[str, int | None]:
    """The dtype most numbers have, and how many there are; from config.json where there are no headers."""
    infos = _local_tensors(source)
    if infos:
        check_names_of_blocks(arch, source)
    elif source.origin.commit is not None and not source.origin.subfolder:
        infos = _hub_tensors(source)
        check_plain(source.origin.name, infos, source.leftovers)
    if infos:
        counts: Counter[str] = Counter()
        for info in infos:
            counts[info.dtype] += math.prod(info.shape)
        return max(counts, key=counts.__getitem__), sum(counts.values())
    named = source.config.get("dtype") or source.config.get("torch_dtype") or "float32"
    return DTYPE_OPTIONS.get(str(named), "F32"), None


def _local_tensors(source: Source) -> list[TensorInfo]:
    """From the headers here; none where only config.json is here, or, from the Hub, not all of the shards."""
    folder = source.origin.folder
    try:
        return list(source.weights.infos.values())
    except QuantisedError:
        raise
    except ConvertAttnError:
        broken = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
        if broken and source.origin.commit is None:
            raise
        return []


def _hub_tensors(source: Source) -> list[TensorInfo]:
    """The Hub serves headers by byte range."""
    api, origin = HfApi(), source.origin
    try:
        metadata = within(_HEADERS_SECONDS, lambda: api.get_safetensors_metadata(origin.name, revision=origin.commit))
    except Exception:  # no safetensors, no network in the HTTP client's own words: the count is left out
        return []
    return [
        TensorInfo(name=name, dtype=str(info.dtype), shape=tuple(info.shape), file=file, offset=0)
        for file, one in metadata.files_metadata.items()
        for name, info in one.tensors.items()
        if info.dtype in SIZES
    ]


@dataclass(frozen=True)
class _Look:
    """A model, and the engine that its results are for."""

    source: Source
    arch: Architecture
    sizes: Geometry
    engine: Engine | None

    def targets(self, form: Form) -> list[Target]:
        """Give every target that holds a form, and that the engine takes."""
        fit = fitting(self.arch, self.sizes, form)
        if self.source.within is not None:  # the larger model's class makes it
            fit = [target for target in fit if target.becomes is None]
        return [t for t in fit if self.engine is None or takes(self.engine, self.config(t, form))]

    def holders(self, form: Form) -> tuple[str, ...]:
        """ "class (layout)" of those targets."""
        return tuple(f"{target.becomes or self.arch.model_type} ({target.layout})" for target in self.targets(form))

    def fewer(self, form: SharedHeads) -> int:
        """Parameters that shared heads save: rows of the key and value projections, and their biases."""
        facts = facts_of(self.arch, self.source.config, self.source.origin.name)
        biases = len(class_biases(self.arch, facts) & {"k", "v"})
        saved = sum(self.sizes.kv_by_layer) - sum(form.groups)
        return saved * self.sizes.head_dim * (2 * self.sizes.hidden_size + biases)

    def config(self, target: Target, form: Form) -> Config:
        """Tell what a rule reads of the result's config.json."""
        config, model_type = self.source.config, target.becomes or self.arch.model_type
        blueprint = self._blueprint(target, form)
        if self.source.within is not None:
            config, model_type = self.source.whole, self.source.whole["model_type"]
        return ({} if target.fresh_config else config) | target.configure(blueprint) | {"model_type": model_type}

    def _blueprint(self, target: Target, form: Form) -> Blueprint:
        facts = facts_of(self.arch, self.source.config, self.source.origin.name)
        return Blueprint(
            arch=self.arch,
            result_arch=result_arch(target, self.arch),
            config=self.source.config,
            sizes=self.sizes,
            form=form,
            biases=class_biases(self.arch, facts),
            inv_freq=form.no_planes if isinstance(form, LatentCache) else (),
        )

    def experiments(self, itemsize: int) -> Iterator[CacheRow]:
        """Give what experimental targets make of the model; none for an engine, which takes no class of theirs."""
        form = SharedHeads(self.sizes.kv_by_layer)
        found = experiments(self.arch) if self.source.within is None and self.engine is None else []
        for target in found:
            experiment = target.experiment
            if experiment is None or experiment.refused(self.sizes) or target.form is not SharedHeads:
                continue
            blueprint = self._blueprint(target, form)
            yield CacheRow(
                name=f"{experiment.label(blueprint)} (experimental)",
                holders=(f"{target.becomes} ({target.layout})",),
                bytes_per_token=form.cache_numbers(self.sizes) * itemsize + experiment.fact_bytes(form),
                most=experiment.tokens(blueprint),
                experimental=experiment.told(blueprint),
            )

    def latents(self) -> list[LatentCache]:
        """Give the engine's sizes of a latent, or those of the usual shares of the cache."""
        if not self.sizes.causal:
            return []
        if self.engine is not None and self.engine.latents:
            return latent_forms(self.engine, self.arch, self.sizes)
        forms = []
        for share in _MLA_SHARES:
            try:
                forms.append(choose_latent(Request(to="mla", cache_ratio=share), self.arch, self.sizes))
            except UsageError:  # too small for this share, or a rotation that a latent cannot have
                continue
        return forms


def _rows(look: _Look, itemsize: int) -> list[CacheRow]:
    """What it is now, every number of shared heads, and MLA; with an engine only what it takes of them."""
    sizes, rows = look.sizes, []
    own = SharedHeads(sizes.kv_by_layer)
    alike = (SharedHeads.of(kv_heads, sizes.num_layers) for kv_heads in reversed(divisors(common_heads(sizes))))
    for shared in (own, *(form for form in alike if form != own)):
        holders = look.holders(shared)
        if shared == own:
            holders = (f"{look.arch.model_type} (source)", *holders)
        if holders or look.engine is None:
            cached = shared.cache_numbers(sizes) * itemsize if sizes.causal else 0
            name, fewer = shared.label(sizes.num_heads), look.fewer(shared)
            rows.append(CacheRow(name=name, holders=holders, bytes_per_token=cached, fewer=fewer))
    for form in look.latents():
        holders = look.holders(form)
        if holders:
            numbers = form.cache_numbers(sizes) + sizes.num_layers * min(t.extra_latent for t in look.targets(form))
            rows.append(CacheRow(name=form.label(sizes.num_heads), holders=holders, bytes_per_token=numbers * itemsize))
    return [*rows, *look.experiments(itemsize)]
