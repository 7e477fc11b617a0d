"""What the user asks for, as typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict, cast

DTYPE_OPTIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
To = Literal["gqa", "mqa", "mla", "mixture-of-layers", "latent-sequence"]
EXPERIMENTS = ("mixture-of-layers", "latent-sequence")
Layout = Literal["auto", "native", "custom"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
ByLayer = int | Sequence[int]
"""One number for all layers, or one for each."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for, as typed.

    `groups`, `rank` and `rope_dim` hold a number for each layer, or one alone that is that of every layer: how many
    layers there are is not known here.

    Attributes:
        to: "gqa", "mqa" or "mla", or one of EXPERIMENTS.
        groups: K/V heads of the result, None where `cache_ratio` or "mqa" says it.
        cache_ratio: share of the source's cache to keep.
        rank: size of MLA's latent.
        rope_dim: size of MLA's shared rotary key.
        slots: of a latent sequence, or of MLA's cache where that is to be one.
        latent_norm: an RMSNorm on MLA's latent, which changes what the model computes.
        calibration: text: "auto" (what the package has for any model; for a bundled sample its own), "sample", "self",
            or what `read_documents` takes; "none" or None: weights only.
        calibration_tokens: how many of it at most; None: as `calibration_windows` says.
        refit: solve the attention anew on the text; "mlp": the projection that ends each MLP too, which changes tensors
            outside attention; None: the attention where the method does by itself.
        measure: original and result are compared on held-out text when the conversion is done.
        layout: "auto", "native" or "custom".
        output: the folder to make, None for the default name in the working directory.
        dtype: "auto" or a key of DTYPE_OPTIONS.
        device: where the arithmetic runs.
        jobs: how many layers are converted at once, where they know nothing of each other: without text.
        engine: what the result is served by, by the name that `--for` takes; None: no matter.
        arch_like: the family that a source of an unknown model type is read as; None: its own.
        trust_remote_code: a source with code of its own is accepted; the tokenizer's goes with the result, and the
            class's, where transformers has none for the model type.
    """

    to: To
    groups: tuple[int, ...] | None = None
    cache_ratio: float | None = None
    rank: tuple[int, ...] | None = None
    rope_dim: tuple[int, ...] | None = None
    slots: int | None = None
    latent_norm: bool = False
    method: str = "subspace"
    calibration: str | None = "auto"
    calibration_tokens: int | None = None
    refit: bool | Literal["mlp"] | None = None
    measure: bool = True
    layout: Layout = "auto"
    output: Path | None = None
    dtype: Dtype = "auto"
    device: str = "cpu"
    seed: int = 0
    overwrite: bool = False
    jobs: int = 1
    engine: str | None = field(default=None, metadata={"option": "for"})
    arch_like: str | None = None
    trust_remote_code: bool = False


class _PlainOptions(TypedDict, total=False):
    """The fields of `Request` that `convert` takes as they are."""

    cache_ratio: float | None
    slots: int | None
    latent_norm: bool
    method: str
    calibration: str | None
    calibration_tokens: int | None
    refit: bool | Literal["mlp"] | None
    measure: bool
    layout: Layout
    dtype: Dtype
    device: str
    seed: int
    overwrite: bool
    jobs: int
    engine: str | None
    arch_like: str | None


class RequestOptions(_PlainOptions, total=False):
    """What `convert` takes besides the model and `to`: for editors and type checkers."""

    groups: ByLayer | None
    rank: ByLayer | None
    rope_dim: ByLayer | None


def request_of(to: To, output: Path | None, trust_remote_code: bool, options: RequestOptions) -> Request:
    """Make a request of what was typed, a single number as a tuple of one."""
    plain = {key: value for key, value in options.items() if key not in ("groups", "rank", "rope_dim")}
    return Request(
        to=to,
        output=output,
        trust_remote_code=trust_remote_code,
        groups=_sequence(options.get("groups")),
        rank=_sequence(options.get("rank")),
        rope_dim=_sequence(options.get("rope_dim")),
        **cast(_PlainOptions, plain),
    )


def _sequence(typed: ByLayer | None) -> tuple[int, ...] | None:
    return None if typed is None else (typed,) if isinstance(typed, int) else tuple(typed)
