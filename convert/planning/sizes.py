"""The sizes of the result's cache that follow from a request for a given model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import gcd

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.archs.cache_form import Form, LatentCache, SharedHeads, by_layer, numbers_of
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.errors import UsageError
from convert_attn.convert.planning.request import EXPERIMENTS, Request
from convert_attn.convert.targets import latent_targets, targets

_FIXED_ROTATIONS = ("default", "linear", "llama3")  # a frequency for each plane and nothing else
STEP = 8  # sizes that the tool chooses are multiples of this, as kernels like them


def divisors(n: int) -> list[int]:
    """Give the numbers of groups that n heads can form."""
    return [g for g in range(1, n + 1) if n % g == 0]


def common_heads(sizes: Geometry) -> int:
    """Give the largest number of K/V heads that every layer's own are a multiple of: theirs, where layers are alike."""
    return gcd(*sizes.kv_by_layer)


def choose_groups(request: Request, sizes: Geometry) -> tuple[int, ...]:
    """Give the number of K/V heads of each layer of the result.

    Raises:
        UsageError: options that do not fit each other or the model.
    """
    if request.groups is not None and request.cache_ratio is not None:
        raise UsageError("--groups and --cache-ratio both say how many heads to keep: give one of them")
    if request.to == "mqa":
        if set(request.groups or (1,)) != {1} or request.cache_ratio is not None:
            raise UsageError("--to mqa always keeps one K/V head: drop --groups / --cache-ratio, or use --to gqa")
        return (1,) * sizes.num_layers
    if request.cache_ratio is not None:
        return tuple(_groups_of_ratio(request.cache_ratio, kv_heads) for kv_heads in sizes.kv_by_layer)
    if request.groups is None:
        allowed = ", ".join(map(str, divisors(common_heads(sizes))))
        raise UsageError(f"--to gqa needs --groups N (one of {allowed}) or --cache-ratio F")
    groups = _by_layer("--groups", request.groups, sizes)
    alike = len(request.groups) == 1 and not sizes.kv_heads
    for layer, (number, kv_heads) in enumerate(zip(groups, sizes.kv_by_layer, strict=True)):
        _check_groups(number, kv_heads, "" if alike else f" in layer {layer}")
    return groups


def _groups_of_ratio(ratio: float, kv_heads: int) -> int:
    if not 0 < ratio <= 1:
        raise UsageError(f"--cache-ratio is {ratio}, expected a share above 0 and at most 1")
    fits = [g for g in divisors(kv_heads) if g <= kv_heads * ratio + 1e-9]
    if not fits:
        raise UsageError(
            f"--cache-ratio {ratio} is less than one of {kv_heads} K/V heads: the smallest ratio is {1 / kv_heads:g}"
        )
    return fits[-1]


def _check_groups(groups: int, kv_heads: int, where: str) -> None:
    """A number of groups is one that K/V heads can form."""
    allowed = ", ".join(map(str, divisors(kv_heads)))
    if groups < 1:
        raise UsageError(f"--groups is {groups}{where}, expected at least 1; this model takes {allowed}")
    if groups > kv_heads:
        raise UsageError(
            f"--groups is {groups}{where} but the model has {kv_heads} K/V heads: heads are shared, never added; "
            f"choose one of {allowed}"
        )
    if kv_heads % groups:
        raise UsageError(
            f"--groups {groups}{where} does not divide the model's {kv_heads} K/V heads; choose one of {allowed}"
        )


def _by_layer(option: str, numbers: tuple[int, ...], sizes: Geometry) -> tuple[int, ...]:
    """What was typed for an option, spelled out.

    Raises:
        UsageError: neither one number nor one for each layer.
    """
    try:
        return by_layer(numbers, sizes.num_layers)
    except ValueError:
        raise UsageError(
            f"{option} has {len(numbers)} numbers and the model {sizes.num_layers} layers: give one for each layer, or "
            "one for all"
        ) from None


def _typed(option: str, numbers: tuple[int, ...], sizes: Geometry) -> Iterator[tuple[int, str]]:
    """The number of each layer, and the words for where it is: none where one was typed for all."""
    for layer, number in enumerate(_by_layer(option, numbers, sizes)):
        yield number, "" if len(numbers) == 1 else f" in layer {layer}"


def choose_form(request: Request, arch: Architecture, sizes: Geometry) -> Form:
    """Tell what the cache is to become.

    Raises:
        UsageError: options that do not fit each other or the model.
    """
    _check_slots(request)
    if request.to in EXPERIMENTS:
        _check_unchanged(request)
        return SharedHeads(sizes.kv_by_layer)
    if not sizes.causal:
        _check_encoder(request, arch)
    if request.to == "mla" and arch.cross is not None:
        raise UsageError(
            f"{arch.model_type} is an encoder-decoder, and no class with a latent has the second attention of its "
            "blocks, on the encoder's states; use --to gqa or --to mqa"
        )
    if request.to == "mla" and arch.seeing_layers:
        raise UsageError(
            f"{arch.model_type} has layers that look at images, and no class with a latent has such; use --to gqa or "
            "--to mqa"
        )
    if request.to == "mla":
        return choose_latent(request, arch, sizes)
    if request.rank is not None or request.rope_dim is not None:
        raise UsageError(f"--rank and --rope-dim are for --to mla: drop them for --to {request.to}")
    if request.latent_norm:
        raise UsageError(f"--latent-norm is for --to mla: drop it for --to {request.to}")
    return SharedHeads(choose_groups(request, sizes))


def _check_slots(request: Request) -> None:
    """Refuse slots that are not there, too few, or for what has none.

    Raises:
        UsageError: see above.
    """
    if request.slots is None and request.to != "latent-sequence":
        return
    if request.to not in ("latent-sequence", "mla"):
        raise UsageError(f"--slots is for --to latent-sequence and --to mla: drop it for --to {request.to}")
    if request.slots is None or request.slots < 8:
        found = "" if request.slots is None else f", at least 8 (it is {request.slots})"
        raise UsageError(f"--to {request.to} needs --slots N{found}: 256 is a beginning")


def _check_unchanged(request: Request) -> None:
    """Refuse what would change weights.

    Raises:
        UsageError: naming the option.
    """
    typed = {
        "--groups": request.groups,
        "--cache-ratio": request.cache_ratio,
        "--rank": request.rank,
        "--rope-dim": request.rope_dim,
        "--latent-norm": request.latent_norm or None,
        "--refit": request.refit or None,
    }
    for option, value in typed.items():
        if value is not None:
            raise UsageError(f"--to {request.to} leaves every weight as it is: drop {option}")


def _check_encoder(request: Request, arch: Architecture) -> None:
    """Refuse what is about a cache.

    Raises:
        UsageError: see above.
    """
    if request.to == "mla":
        raise UsageError(
            f"{arch.model_type} is an encoder: it reads a text once and keeps no cache, which is what a latent makes "
            "small; use --to gqa or --to mqa, which save parameters"
        )
    if request.cache_ratio is not None:
        raise UsageError(f"{arch.model_type} is an encoder and keeps no cache: give --groups N, not --cache-ratio")


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
    _check_latent_fits(arch, sizes)
    rotary = sizes.turns
    whole = SharedHeads(sizes.kv_by_layer).cache_numbers(sizes) // sizes.num_layers  # on average
    if request.cache_ratio is not None:
        return _latent_of_ratio(request, rotary, whole, sizes)
    ranks = request.rank
    if ranks is None:
        if rotary or sizes.hidden_size >= whole:
            raise UsageError(f"--to mla needs --rank R or --cache-ratio F (the whole cache is {whole} numbers)")
        ranks = (sizes.hidden_size,)  # without rotary position this loses nothing
    for rank, where in _typed("--rank", ranks, sizes):
        if rank < 1:
            raise UsageError(f"--rank is {rank}{where}, expected at least 1")
        if rank > sizes.hidden_size:
            raise UsageError(
                f"--rank is {rank}{where}, more than the hidden size {sizes.hidden_size}, which loses nothing already; "
                "give less"
            )
    mean = sum(ranks) // len(ranks)
    form = LatentCache.of(ranks, _rope_dims(request, rotary, mean, sizes), sizes.num_layers, request.latent_norm)
    return replace(form, key_sizes=sizes.key_sizes)


def _check_latent_fits(arch: Architecture, sizes: Geometry) -> None:
    """Refuse what no class with a latent computes, of those that take the family.

    Raises:
        UsageError: naming it.
    """
    computed = {what for target in latent_targets(arch) for what in target.computes}
    elsewhere = {what for target in targets() for what in target.computes}
    for what, kept in _not_in_every_latent(sizes).items():
        if what not in computed:
            which = (
                "no class with a latent around such blocks has" if what in elsewhere else "no class with a latent has"
            )
            raise UsageError(f"this model {kept}, which {which}; use --to gqa or --to mqa")
    if sizes.rope_type not in _FIXED_ROTATIONS:
        raise UsageError(
            f"rope type '{sizes.rope_type}' scales or changes its rotation with the input's length, which MLA's rotary "
            f"key cannot (known: {', '.join(_FIXED_ROTATIONS)}); use --to gqa"
        )


def _not_in_every_latent(sizes: Geometry) -> dict[str, str]:
    """What a model's attention does that not every class with a latent computes: its name, and the words for it."""
    found = {
        "norm": ("has a norm on each key, behind its projection", sizes.norm is not None),
        "soft cap": ("caps its scores", sizes.softcapped),
        "sinks": ("has attention sinks", sizes.sinks),
        "windows by layer": ("mixes layers with and without a sliding window", sizes.mixed_windows),
    }
    return {what: words for what, (words, there) in found.items() if there}


def _rope_dims(request: Request, rotary: bool, rank: int, sizes: Geometry) -> tuple[int, ...]:
    """The sizes of the rotary key: as asked for, else in proportion to the rank; 0 without rotary position."""
    asked = request.rope_dim
    if not rotary:
        if asked is not None and any(asked):
            raise UsageError(f"--rope-dim is {numbers_of(asked)} but the model has no rotary position: drop it")
        return (0,)
    most = sizes.turning_keys
    if asked is None:
        return (min(most, max(STEP, round(0.6 * rank / STEP) * STEP)),)
    for size, where in _typed("--rope-dim", asked, sizes):
        if size < 2 or size % 2 or size > most:
            raise UsageError(
                f"--rope-dim is {size}{where}, expected an even number from 2 to {most} (all that turns of this "
                "model's keys)"
            )
    return asked


def rotary_share(cache_ratio: float) -> float:
    """Give the part of MLA's cache that the rotary key gets, given the share of the original's cache that is kept.

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
    total = (int(whole * ratio + 1e-9) - sizes.key_sizes) // STEP * STEP
    share = max(STEP, round(rotary_share(ratio) * total / STEP) * STEP)
    rope_dim = min(share, sizes.turning_keys) if rotary else 0
    least = STEP * (2 if rotary else 1)
    if total < least:
        enough = (least + sizes.key_sizes) / whole
        raise UsageError(f"--cache-ratio {ratio} leaves {total} of {whole} numbers: give at least {enough:g}")
    rank = min(total - rope_dim, sizes.hidden_size)
    form = LatentCache.of(rank, rope_dim, sizes.num_layers, request.latent_norm)
    return replace(form, key_sizes=sizes.key_sizes)
