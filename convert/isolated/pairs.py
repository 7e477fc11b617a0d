"""What an encoder-decoder does, found by running it: a text or sounds on one side, tokens that follow on the other.

Letters in shapes: B pairs, S tokens of the target, M states that the encoder gives, D hidden size, V as in behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache, GenerationConfig

from .behaviour import Held, MisbehaviourError, Step, check_equal, feed, hooked, layer_tensors, schedules

OTHERS, OTHERS_SEED = 11, 4242  # states that take the place of an encoder's, and what they are drawn by
_NEW, _BEAMS = 4, 3

Given = dict[str, Tensor]
"""What an encoder is given: ids or sounds, and a mask where it knows of one; or `encoder_outputs`."""


def source_of(model: Any, ids: Tensor) -> Given:
    """Make what the encoder reads, one text of token ids [1, S], or random sounds where it reads none."""
    config = model.config
    if model.main_input_name == "input_ids":
        return {"input_ids": ids.flip(1), "attention_mask": torch.ones_like(ids)}
    size = (1, config.num_mel_bins, 2 * config.max_source_positions)
    sounds = torch.randn(size, generator=torch.Generator().manual_seed(6))
    return {model.main_input_name: sounds.to(next(model.parameters()).dtype)}


def forward(
    model: Any, source: Given, ids: Tensor, *, held: Held | None = None, states: Any = None, use_cache: bool = False
) -> tuple[Step, Tensor]:
    """Run a model on a source and on tokens [B, S] of the target.

    Args:
        states: the encoder's, in place of what it reads; its mask still counts.

    Returns:
        what it gave, and the encoder's states [B, M, D].

    Raises:
        MisbehaviourError: it is to return a cache and does not.
    """
    given: dict[str, Any] = dict(source)
    if states is not None:
        given = {name: value for name, value in given.items() if name != model.main_input_name}
        given["encoder_outputs"] = (states,)
    if held is not None:
        given[held.name] = held.cache
    out = model(decoder_input_ids=ids, return_dict=True, use_cache=use_cache, **given)
    values = next(value for value in out.values() if isinstance(value, Tensor) and value.is_floating_point())
    caches = [Held(str(name), value) for name, value in out.items() if isinstance(value, Cache | EncoderDecoderCache)]
    if use_cache and not (caches and isinstance(caches[0].cache, EncoderDecoderCache)):
        raise MisbehaviourError("returns no cache for both of its attentions when it is asked for one")
    return Step(values, caches[0] if caches else None), out.encoder_last_hidden_state


def decode(model: Any, source: Given, ids: Tensor, schedule: Sequence[int]) -> Tensor:
    """Run a model on targets [B, S] piece by piece, each time with the cache of the pieces before: [B, S, V].

    Raises:
        MisbehaviourError: the cache does not hold what was given.
    """
    held, states, done, pieces = None, None, 0, []
    for size in schedule:
        part = ids[:, done : done + size]
        step, states = forward(model, source, part, held=held, states=states, use_cache=True)
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
    """Check that decoding with a cache gives what one pass gives, and that a padded source counts as what it holds.

    Returns:
        the largest difference seen, in standard deviations of the output.

    Raises:
        MisbehaviourError: naming the way of decoding that differs.
    """
    source = source_of(model, ids)
    whole = forward(model, source, ids)[0].values
    if not torch.isfinite(whole).all():
        raise MisbehaviourError(f"gives numbers that are not finite in {str(whole.dtype).removeprefix('torch.')}")
    gaps = [
        check_equal(
            decode(model, source, ids, schedule),
            whole,
            f"does not decode with its cache {way} what it computes in one pass",
        )
        for way, schedule in schedules(ids.shape[1]).items()
    ]
    both, alone = _padded(source)
    together = decode(model, both, ids.repeat(2, 1), [1] * ids.shape[1])
    short = forward(model, alone, ids)[0].values
    for row, wanted in ((together[:1], whole), (together[1:], short)):
        gaps.append(check_equal(row, wanted, "does not give for a batch with a padded source what each gives alone"))
    return max(gaps)


def _padded(source: Given) -> tuple[Given, Given]:
    """A source twice, the second shorter and padded where it is text; and the second alone."""
    if "attention_mask" not in source:
        return {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in source.items()}, source
    length = source["input_ids"].shape[1]
    kept = max(1, length - length * 3 // 8)
    both = {name: value.repeat(2, 1) for name, value in source.items()}
    both["attention_mask"][1, kept:] = 0
    return both, {name: value[:, :kept] for name, value in source.items()}


@torch.inference_mode()
def check_generate(model: Any, ids: Tensor) -> float:
    """Check that `generate` makes the same with and without a cache, for one sequence at a time and for beams.

    Raises:
        MisbehaviourError: they differ.
    """
    source, _ = _padded(source_of(model, ids))
    length = 1 if ids.shape[1] < 2 else 2  # a target that has begun

    def run(use_cache: bool, beams: int) -> Any:
        wanted = GenerationConfig(
            max_new_tokens=_NEW,
            min_new_tokens=_NEW,
            do_sample=False,
            num_beams=beams,
            use_cache=use_cache,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=beams == 1,
            output_scores=beams > 1,
        )
        return model.generate(**source, decoder_input_ids=ids[:, :length].repeat(2, 1), generation_config=wanted)

    cached, whole = run(True, 1), run(False, 1)
    gap = 0.0
    for n, (ours, theirs) in enumerate(zip(cached.logits, whole.logits, strict=False)):
        what = f"does not generate with its cache what it generates without (new token {n + 1})"
        gap = max(gap, check_equal(ours, theirs, what))
        place = cached.sequences.shape[1] - len(cached.logits) + n
        if not torch.equal(cached.sequences[:, place], whole.sequences[:, place]):
            break
    cached, whole = run(True, _BEAMS), run(False, _BEAMS)
    what = "does not find by beams with its cache what it finds without"
    check_equal(cached.sequences_scores[:, None], whole.sequences_scores[:, None], what)
    return gap


@torch.inference_mode()
def cached_numbers(model: Any, ids: Tensor) -> list[float]:
    """Measure how many numbers a token more adds to each layer's cache: of the target, of the source, in turn."""
    source = source_of(model, ids)
    found: list[list[tuple[int, int, int]]] = []
    few = max(1, ids.shape[1] // 2)
    sources = [source, _padded(source)[1]]
    for number, length in ((0, few), (0, ids.shape[1]), (1, few)):
        step, states = forward(model, sources[number], ids[:, :length], use_cache=True)
        assert step.held is not None
        kept: Any = step.held.cache
        layers = zip(kept.self_attention_cache.layers, kept.cross_attention_cache.layers, strict=False)
        found.append([(_numbers(own), _numbers(other), states.shape[1]) for own, other in layers])
    numbers: list[float] = []
    for (own, other, length), (more, _, _), (_, fewer, short) in zip(*found, strict=True):
        if not own and not other:  # a layer of the cache that no block fills, as the stacks are not of one size
            continue
        numbers.append((more - own) / max(1, ids.shape[1] - few))
        numbers.append((other - fewer) / (length - short) if length > short else other / length)
    return numbers


def _numbers(layer: Any) -> int:
    return sum(tensor.numel() for tensor in layer_tensors(layer))


@torch.inference_mode()
def attention_outputs(
    model: Any, ids: Tensor, inputs: dict[int, Tensor], others: dict[int, Tensor], sites: Sequence[Sequence[str]]
) -> dict[int, Tensor]:
    """Run a model whose n-th attention reads inputs[n], [1, S, D], and tell what it gives, [1, S, D].

    Args:
        others: what takes the place of the encoder's states, [1, M, D], the same for all.
        sites: the module that reads and the one that gives, of each attention, by its name in the base model.
    """
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            found[number] = (out[0] if isinstance(out, tuple) else out).clone()

        return hook

    base = getattr(model, model.base_model_prefix, model)
    handles: list[Any] = []
    for number, x in inputs.items():
        reads, gives = (base.get_submodule(name) for name in sites[number])
        handles.append(reads.register_forward_pre_hook(feed(x), with_kwargs=True))
        handles.append(gives.register_forward_hook(keep(number)))
    dtype = next(model.parameters()).dtype
    states = next((one.to(dtype) for one in others.values()), None)
    with hooked(handles):
        forward(model, {} if states is not None else source_of(model, ids), ids, states=states)
    return found


@torch.inference_mode()
def around_attention(model: Any, ids: Tensor, outputs: Sequence[Tensor], sites: Sequence[Sequence[str]]) -> Tensor:
    """Run a model whose decoder's attention modules give what they are told, [1, S, D] each: all that is not they.

    Returns:
        [1, n] all that it gives, and the states of its encoder, which no other module then reads.
    """

    def replaced(y: Tensor) -> Any:
        def hook(module: Any, args: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            return (y.to(first), *out[1:]) if isinstance(out, tuple) else y.to(first)

        return hook

    base = getattr(model, model.base_model_prefix, model)
    modules = [base.get_submodule(gives) for _, gives in sites]
    handles = [module.register_forward_hook(replaced(y)) for module, y in zip(modules, outputs, strict=True)]
    with hooked(handles):
        step, states = forward(model, source_of(model, ids), ids)
    return torch.cat([step.values.flatten(1), states.flatten(1)], 1)
