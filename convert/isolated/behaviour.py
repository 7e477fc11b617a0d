"""What a loaded model does, found by running it: names of arguments and fields are asked of its class.

Letters in shapes: B sequences, S tokens, D hidden size, V the last size of what a model gives (D or the vocabulary).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig

LENGTH = 16  # tokens of a probe, fewer where a model reads fewer
_WIDE, _WIDE_LENGTH = 1024, 8  # a hidden size from which on fewer do: every number of a state is compared
_NEW = 4  # tokens that generate makes
# How far two ways to the same numbers may differ, in standard deviations of these numbers. Classes that carry a large
# constant through a norm differ by 3e-3 in float32; a token that is not seen makes them differ by about 1.
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-6, torch.float16: 5e-2, torch.bfloat16: 4e-1}


class MisbehaviourError(Exception):
    """A model does something else than it should: a clause that follows its name."""


@dataclass(frozen=True)
class Held:
    """A cache, and the name under which the model gave it and takes it back."""

    name: str
    cache: Cache


@dataclass(frozen=True)
class Step:
    """What a forward pass gave: the first floating-point field [B, S, V], and the cache."""

    values: Tensor
    held: Held | None


def text_config(config: Any) -> Any:
    """Give the config of the language model in a larger one's; else the config itself."""
    parts = [getattr(config, key, None) for key in getattr(config, "sub_configs", ())]
    inner = config.get_text_config(decoder=True) if parts else config
    return inner if any(inner is part for part in parts) else config


def probe_length(config: Any) -> int:
    """Tell how many tokens a model of this config is asked at once."""
    config = text_config(config)
    length = LENGTH if getattr(config, "hidden_size", 0) < _WIDE else _WIDE_LENGTH
    return min(length, getattr(config, "max_position_embeddings", None) or length)


def probe_tokens(config: Any) -> Tensor:
    """Make token ids [1, S] for a model of this config, the same at every call, none of them padding."""
    length = probe_length(config)
    config = text_config(config)
    drawn = torch.randint(config.vocab_size, (64 + length,), generator=torch.Generator().manual_seed(5))
    padding = getattr(config, "pad_token_id", None)
    return drawn[drawn != (-1 if padding is None else padding)][None, :length]


def forward(
    model: Any,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    held: Held | None = None,
    use_cache: bool = False,
) -> Step:
    """Run a model on token ids [B, S].

    Raises:
        MisbehaviourError: it is to return a cache and does not, or has no argument that takes its cache back.
    """
    taken = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {"use_cache": use_cache} if "use_cache" in taken else {}
    if mask is not None:
        given["attention_mask"] = mask
    if positions is not None and "position_ids" in taken:
        given["position_ids"] = positions
    if held is not None:
        if held.name not in taken:
            raise MisbehaviourError(f"returns its cache as '{held.name}' and has no argument of that name to take it")
        given[held.name] = held.cache
    out = model(input_ids=ids, return_dict=True, **given)
    values = next(value for value in out.values() if isinstance(value, Tensor) and value.is_floating_point())
    caches = [Held(str(name), value) for name, value in out.items() if isinstance(value, Cache)]
    if use_cache and not caches:
        raise MisbehaviourError("returns no cache when it is asked for one")
    return Step(values, caches[0] if caches else None)


def difference(values: Tensor, reference: Tensor) -> float:
    """Give the largest difference in standard deviations of the reference, or in its size where it does not vary."""
    wanted = reference.float()
    spread = wanted.std(correction=0)
    unit = torch.where(spread > 1e-6 * wanted.abs().max(), spread, wanted.abs().max()).clamp_min(1e-12)
    return float((values.float() - wanted).abs().max() / unit)


def check_equal(values: Tensor, reference: Tensor, what: str) -> float:
    """Give the difference of two ways to the same numbers.

    Raises:
        MisbehaviourError: it is more than rounding.
    """
    gap = difference(values, reference)
    allowed = TOLERANCE[reference.dtype]
    if not gap <= allowed:
        raise MisbehaviourError(
            f"{what} (they differ by {gap:.2g} standard deviations, {allowed:g} is rounding in "
            f"{str(reference.dtype).removeprefix('torch.')})"
        )
    return gap


def decode(model: Any, ids: Tensor, schedule: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Run a model on ids [B, S] piece by piece, each time with the cache of the pieces before: [B, S, V].

    Args:
        schedule: lengths of the pieces; their sum is S.
        mask: [B, S] 0 where a sequence is padded.

    Raises:
        MisbehaviourError: the cache does not hold what was given.
    """
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp_min(0)
    held, done, pieces = None, 0, []
    for size in schedule:
        part = slice(done, done + size)
        step = forward(
            model,
            ids[:, part],
            mask=None if mask is None else mask[:, : done + size],
            positions=None if positions is None else positions[:, part],
            held=held,
            use_cache=True,
        )
        held, done = step.held, done + size
        pieces.append(step.values)
        if held is not None and held.cache.get_seq_length() != done:
            raise MisbehaviourError(
                f"has {held.cache.get_seq_length()} tokens in its cache after {done} were given: it does not read the "
                f"'{held.name}' that it is handed"
            )
    return torch.cat(pieces, 1)


@torch.inference_mode()
def check_decode(model: Any, ids: Tensor) -> float:
    """Check that decoding with a cache gives what one pass without it gives, and padding changes nothing.

    Args:
        model: in evaluation mode; a language model or a base model.
        ids: [1, S].

    Returns:
        the largest difference seen, in standard deviations of the output.

    Raises:
        MisbehaviourError: naming the way of decoding that differs.
    """
    whole = forward(model, ids).values
    if not torch.isfinite(whole).all():
        raise MisbehaviourError(f"gives numbers that are not finite in {str(whole.dtype).removeprefix('torch.')}")
    gaps = [
        check_equal(
            decode(model, ids, schedule), whole, f"does not decode with its cache {way} what it computes in one pass"
        )
        for way, schedule in schedules(ids.shape[1]).items()
    ]
    batch, mask, padding = padded_batch(ids)
    last = min(_NEW, ids.shape[1] - 1)
    values = decode(model, batch, [ids.shape[1] - last, *[1] * last], mask)
    short = forward(model, batch[1:, padding:]).values
    for row, alone in ((values[:1], whole), (values[1:, padding:], short)):
        gaps.append(check_equal(row, alone, "does not give for a left-padded batch what each sequence gives alone"))
    return max(gaps)


def schedules(length: int) -> dict[str, list[int]]:
    """Ways to hand over so many tokens, as lengths of pieces."""
    chunks = [min(5, length), *([1, max(length - 9, 0), 3] if length > 9 else [length - min(5, length)])]
    return {"token by token": [1] * length, "in chunks": [size for size in chunks if size]}


def padded_batch(ids: Tensor) -> tuple[Tensor, Tensor, int]:
    """Make of ids [1, S] two sequences [2, S], the second shorter and padded on the left.

    Returns:
        ids, their mask, and how many tokens of the second are padding.
    """
    length = ids.shape[1]
    padding = length * 3 // 8
    mask = torch.ones(2, length, dtype=ids.dtype, device=ids.device)
    mask[1, :padding] = 0
    return torch.cat([ids, torch.cat([ids.new_zeros(1, padding), ids[:, : length - padding]], 1)]), mask, padding


@torch.inference_mode()
def check_generate(model: Any, ids: Tensor) -> float:
    """Check that `generate` makes the same of a padded batch with and without a cache.

    Compared are logits, up to the first token in which the two differ: a tie may go either way.

    Raises:
        MisbehaviourError: they differ.
    """
    length = max(1, ids.shape[1] - _NEW)
    new = min(_NEW, max(1, ids.shape[1] - length))
    batch, mask, _ = padded_batch(ids[:, :length])

    def run(use_cache: bool) -> tuple[Tensor, Tensor]:
        wanted = GenerationConfig(
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            num_beams=1,
            use_cache=use_cache,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        made = model.generate(batch, attention_mask=mask, generation_config=wanted)
        return torch.stack(made.logits, 1), made.sequences[:, length:]

    (cached, cached_tokens), (whole, whole_tokens) = run(True), run(False)
    gap = 0.0
    for n in range(min(cached.shape[1], whole.shape[1])):
        what = f"does not generate with its cache what it generates without (new token {n + 1})"
        gap = max(gap, check_equal(cached[:, n], whole[:, n], what))
        if not torch.equal(cached_tokens[:, n], whole_tokens[:, n]):
            break
    return gap


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def layer_tensors(layer: Any) -> list[Tensor]:
    """List the tensors that one layer of a cache holds, views of the same memory once."""
    found = [tensor for value in vars(layer).values() for tensor in _tensors(value)]
    return list({(tensor.data_ptr(), tensor.nbytes): tensor for tensor in found if tensor.nbytes}.values())


@torch.inference_mode()
def cached_numbers(model: Any, ids: Tensor) -> list[float]:
    """Measure how many numbers one more token adds to each layer of the cache, for one sequence."""
    sizes = []
    long = min(4, ids.shape[1])
    short = long - 1 - long // 4
    for length in (short, long) if short else (long,):
        held = forward(model, ids[:, :length], use_cache=True).held
        if held is None:
            raise MisbehaviourError("returns no cache when it is asked for one")
        sizes.append([sum(tensor.numel() for tensor in layer_tensors(layer)) for layer in held.cache.layers])
    if not short:  # a model that reads one token
        return [float(size) for size in sizes[0]]
    return [(more - less) / (long - short) for less, more in zip(*sizes, strict=True)]


def attention_modules(model: nn.Module, within: str = "") -> list[nn.Module]:
    """List the outermost modules whose class name says attention, and not a layer of it, in the order of the blocks.

    Args:
        within: the module in which they are, "" for any.
    """
    model = model.get_submodule(within)
    kinds = ((name, type(module).__name__) for name, module in model.named_modules())
    names = [name for name, kind in kinds if "Attention" in kind and not kind.endswith("Layer")]
    return [
        model.get_submodule(name)
        for name in names
        if not any(name != outer and name.startswith(f"{outer}.") for outer in names)
    ]


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def feed(x: Tensor) -> Callable[..., Any]:
    """Make a forward pre-hook (with kwargs) that hands a module x [1, S, D] instead of the states it is called with."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        own = next(module.parameters())
        states = x.to(own.device, own.dtype)
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    return hook


@torch.inference_mode()
def attention_outputs(
    model: Any, ids: Tensor, inputs: dict[int, Tensor], inside: tuple[str, str] = ("", ""), within: str = ""
) -> dict[int, Tensor]:
    """Run a model whose n-th attention module reads inputs[n], [1, S, D], and tell what it gives, [1, S, D].

    Args:
        inside: below an attention module, which one reads and which one gives, where it does more than attention.
        within: as of `attention_modules`.

    Raises:
        MisbehaviourError: there is no n-th attention module.
    """
    modules = attention_modules(model, within)
    if len(modules) <= max(inputs, default=-1):
        raise MisbehaviourError(f"has {len(modules)} attention modules where {max(inputs) + 1} or more are expected")
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            found[number] = (out[0] if isinstance(out, tuple) else out).clone()

        return hook

    handles: list[Any] = []
    for number, x in inputs.items():
        reads, gives = (modules[number].get_submodule(path) for path in inside)
        handles.append(reads.register_forward_pre_hook(feed(x), with_kwargs=True))
        handles.append(gives.register_forward_hook(keep(number)))
    with hooked(handles):
        forward(model, ids)
    return found


@torch.inference_mode()
def around_attention(model: Any, ids: Tensor, outputs: Sequence[Tensor], gives: str = "", within: str = "") -> Tensor:
    """Run a model whose attention modules give what they are told, [1, S, D] each: all that is not attention.

    Args:
        gives: as the second of `attention_outputs`' `inside`.
        within: as of `attention_modules`.
    """

    def replaced(y: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            return (y.to(first), *out[1:]) if isinstance(out, tuple) else y.to(first)

        return hook

    modules = [module.get_submodule(gives) for module in attention_modules(model, within)]
    handles = [module.register_forward_hook(replaced(y)) for module, y in zip(modules, outputs, strict=True)]
    with hooked(handles):
        return forward(model, ids).values
