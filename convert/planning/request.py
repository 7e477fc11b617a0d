"""What the user asks for, and the sizes that follow from it for a given model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.errors import UsageError

DTYPE_OPTIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FIXED_ROTATIONS = ("default", "linear", "llama3")  # a frequency for each plane and nothing else
To = Literal["gqa", "mqa", "mla"]
Layout = Literal["auto", "native", "custom"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
STEP = 8  # sizes that the tool chooses are multiples of this, as kernels like them


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for, as typed.

    Attributes:
        to: "gqa", "mqa" or "mla".
        groups: K/V heads of the result, None where `cache_ratio` or "mqa" says it.
        cache_ratio: share of the source's cache to keep.
        rank: size of MLA's latent.
        rope_dim: size of MLA's shared rotary key.
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
        engine: what the result is served by, by the name that `--for` takes; None: no matter.
        trust_remote_code: a source with code of its own is accepted; the tokenizer's goes with the result.
    """

    to: To
    groups: int | None = None
    cache_ratio: float | None = None
    rank: int | None = None
    rope_dim: int | None = None
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
    engine: str | None = field(default=None, metadata={"option": "for"})
    trust_remote_code: bool = False


class RequestOptions(TypedDict, total=False):
    """The fields of `Request` that `convert` takes as they are: for editors and type checkers."""

    groups: int | None
    cache_ratio: float | None
    rank: int | None
    rope_dim: int | None
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
    engine: str | None


def divisors(n: int) -> list[int]:
    """The numbers of groups that n heads can form."""
    return [g for g in range(1, n + 1) if n % g == 0]


def choose_groups(request: Request, kv_heads: int) -> int:
    """The number of K/V heads of the result.

    Raises:
        UsageError: options that do not fit each other or the model.
    """
    allowed = ", ".join(map(str, divisors(kv_heads)))
    if request.groups is not None and request.cache_ratio is not None:
        raise UsageError("--groups and --cache-ratio both say how many heads to keep: give one of them")
    if request.to == "mqa":
        if request.groups not in (None, 1) or request.cache_ratio is not None:
            raise UsageError("--to mqa always keeps one K/V head: drop --groups / --cache-ratio, or use --to gqa")
        return 1
    if request.cache_ratio is not None:
        if not 0 < request.cache_ratio <= 1:
            raise UsageError(f"--cache-ratio is {request.cache_ratio}, expected a share above 0 and at most 1")
        fits = [g for g in divisors(kv_heads) if g <= kv_heads * request.cache_ratio + 1e-9]
        if not fits:
            raise UsageError(
                f"--cache-ratio {request.cache_ratio} is less than one of {kv_heads} K/V heads: "
                f"the smallest ratio is {1 / kv_heads:g}"
            )
        return fits[-1]
    if request.groups is None:
        raise UsageError(f"--to gqa needs --groups N (one of {allowed}) or --cache-ratio F")
    if request.groups < 1:
        raise UsageError(f"--groups is {request.groups}, expected at least 1; this model takes {allowed}")
    if request.groups > kv_heads:
        raise UsageError(
            f"--groups is {request.groups} but the model has {kv_heads} K/V heads: heads are shared, never added; "
            f"choose one of {allowed}"
        )
    if kv_heads % request.groups:
        raise UsageError(
            f"--groups {request.groups} does not divide the model's {kv_heads} K/V heads; choose one of {allowed}"
        )
    return request.groups


def choose_form(request: Request, arch: Architecture, sizes: Geometry) -> Form:
    """What the cache is to become.

    Raises:
        UsageError: options that do not fit each other or the model.
    """
    if request.to == "mla":
        return choose_latent(request, arch, sizes)
    if request.rank is not None or request.rope_dim is not None:
        raise UsageError(f"--rank and --rope-dim are for --to mla: drop them for --to {request.to}")
    if request.latent_norm:
        raise UsageError(f"--latent-norm is for --to mla: drop it for --to {request.to}")
    return SharedHeads(choose_groups(request, sizes.num_kv_heads))


def choose_latent(request: Request, arch: Architecture, sizes: Geometry) -> LatentCache:
    """MLA's sizes.

    Given a rank alone, the rotary key gets three fifths of it: of the splits tried on trained models the best, or
    near it, from 1/2 to 1/8 of the cache. Given a share of the cache, see `rotary_share`.

    Raises:
        UsageError: options that do not fit each other or the model.
    """
    if request.groups is not None:
        raise UsageError("--groups is for --to gqa: give --rank R or --cache-ratio F for --to mla")
    if request.latent_norm and request.layout == "native":
        raise UsageError(
            "--latent-norm needs our class: a native one has a norm on its latent already, which the conversion makes "
            "do nothing; drop --latent-norm or --layout native"
        )
    _check_latent_fits(sizes)
    rotary = sizes.turns
    whole = 2 * sizes.num_kv_heads * sizes.head_dim
    if request.cache_ratio is not None:
        return _latent_of_ratio(request, rotary, whole, sizes)
    rank = request.rank
    if rank is None:
        if rotary or sizes.hidden_size >= whole:
            raise UsageError(f"--to mla needs --rank R or --cache-ratio F (the whole cache is {whole} numbers)")
        rank = sizes.hidden_size  # without rotary position this loses nothing
    if rank < 1:
        raise UsageError(f"--rank is {rank}, expected at least 1")
    if rank > sizes.hidden_size:
        raise UsageError(
            f"--rank is {rank}, more than the hidden size {sizes.hidden_size}, which loses nothing already; give less"
        )
    return LatentCache(rank, _rope_dim(request, rotary, rank, sizes), request.latent_norm)


def _check_latent_fits(sizes: Geometry) -> None:
    """Refuse what our latent classes do not compute."""
    if kept := _not_in_a_latent(sizes):
        raise UsageError(f"this model {kept}, which no class with a latent has; use --to gqa or --to mqa")
    if sizes.rope_type not in _FIXED_ROTATIONS:
        raise UsageError(
            f"rope type '{sizes.rope_type}' scales or changes its rotation with the input's length, which MLA's rotary "
            f"key cannot (known: {', '.join(_FIXED_ROTATIONS)}); use --to gqa"
        )
    if sizes.mixed_windows:
        raise UsageError(
            "this model mixes layers with and without a sliding window, which --to mla cannot; use --to gqa"
        )


def _not_in_a_latent(sizes: Geometry) -> str | None:
    """What of a model's attention no class with a latent computes."""
    if sizes.norm is not None:
        return "has a norm on each key, behind its projection"
    if sizes.softcapped:
        return "caps its scores"
    if sizes.sinks:
        return "has attention sinks"
    return None


def _rope_dim(request: Request, rotary: bool, rank: int, sizes: Geometry) -> int:
    """The size of the rotary key: as asked for, else in proportion to the rank; 0 without rotary position."""
    if not rotary:
        if request.rope_dim:
            raise UsageError(f"--rope-dim is {request.rope_dim} but the model has no rotary position: drop it")
        return 0
    most = sizes.num_kv_heads * sizes.head_dim
    if request.rope_dim is None:
        return min(most, max(STEP, round(0.6 * rank / STEP) * STEP))
    if request.rope_dim < 2 or request.rope_dim % 2 or request.rope_dim > most:
        raise UsageError(
            f"--rope-dim is {request.rope_dim}, expected an even number from 2 to {most} (all keys of this model)"
        )
    return request.rope_dim


def rotary_share(cache_ratio: float) -> float:
    """The part of MLA's cache that the rotary key gets, given the share of the original's cache that is kept.

    Chosen from what `subspace` left of a Llama of 8 heads of 32 (512 numbers per token and layer), trained on Python
    documentation; KL to the original in nats per token, best of the splits tried in brackets:

        1/2 of the cache   160 latent + 96 rotary [0.0111]
        1/4                64 + 64 [0.0448]
        1/8                32 + 32 [0.218], 40 + 24 0.246
    """
    return 0.375 if cache_ratio >= 0.5 else 0.5


def _latent_of_ratio(request: Request, rotary: bool, whole: int, sizes: Geometry) -> LatentCache:
    """Rank and rotary key that together are at most that share of the cache, in multiples of 8."""
    ratio = request.cache_ratio
    if ratio is None or not 0 < ratio <= 1:
        raise UsageError(f"--cache-ratio is {ratio}, expected a share above 0 and at most 1")
    if request.rank is not None or request.rope_dim is not None:
        raise UsageError("--cache-ratio chooses the sizes: drop --rank and --rope-dim, or give them alone")
    total = int(whole * ratio + 1e-9) // STEP * STEP
    rope_dim = max(STEP, round(rotary_share(ratio) * total / STEP) * STEP) if rotary else 0
    least = STEP * (2 if rotary else 1)
    if total < least:
        raise UsageError(f"--cache-ratio {ratio} leaves {total} of {whole} numbers: give at least {least / whole:g}")
    return LatentCache(min(total - rope_dim, sizes.hidden_size), rope_dim, request.latent_norm)
