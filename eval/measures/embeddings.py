"""Encoders compared: how alike the embeddings of a text are, and how long one forward pass takes.

An encoder reads a text once: there is no next token, no cache, and nothing to decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from convert_attn.eval.measures.quality import Advance, Estimate
from convert_attn.eval.measures.speed import CONVERTED, ORIGINAL, AttentionClock, timed_figures
from convert_attn.eval.measures.timing import Timed, take_turns

_BATCH = 32  # texts in a forward call


def states(model: Any, tokens: Tensor) -> Tensor:
    """Give the last hidden states [B, T, D] of token ids [B, T]."""
    found: Tensor = model.base_model(input_ids=tokens.to(model.device)).last_hidden_state
    return found


@torch.inference_mode()
def compare_embeddings(original: Any, converted: Any, texts: Tensor, advance: Advance) -> dict[str, Any]:
    """Tell how alike both models' embeddings are, each the mean of a text's last hidden states.

    Args:
        texts: [N, T] token ids, none of them padding.

    Returns:
        `cosine` and `hidden_error` (squared error of the last hidden states relative to the original's size), each a
        mean over texts with its standard error; `least`, the smallest cosine; `texts` and `length`.
    """
    cosines, errors = list[Tensor](), list[Tensor]()
    for part in texts.split(_BATCH):
        theirs, ours = (states(model, part).double().cpu() for model in (original, converted))
        cosines.append(cosine_similarity(theirs.mean(1), ours.mean(1), dim=-1))
        errors.append((ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2)).clamp_min(1e-30))
        advance(sum(map(len, cosines)), len(texts))
    cosine, error = torch.cat(cosines), torch.cat(errors)
    return {
        "cosine": _mean(cosine),
        "least": float(cosine.min()),
        "hidden_error": _mean(error),
        "texts": len(texts),
        "length": texts.shape[1],
    }


def _mean(values: Tensor) -> dict[str, float | None]:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return Estimate(float(values.mean()), error).as_dict()


@torch.inference_mode()
def compare_forward(
    original: Any,
    converted: Any,
    *,
    contexts: Sequence[int],
    batch_sizes: Sequence[int],
    repeats: int,
    advance: Advance,
) -> list[dict[str, Any]]:
    """Time a forward pass of both base models, which take turns, at every length and batch size.

    Returns:
        one entry each: `context`, `batch_size`, `forward` and `forward_attention`, or `skipped`, a sentence.
    """
    models = {ORIGINAL: original.base_model, CONVERTED: converted.base_model}
    cells = [(context, batch) for batch in batch_sizes for context in contexts]
    rows = []
    for index, (context, batch) in enumerate(cells):
        row: dict[str, Any] = {"context": context, "batch_size": batch}
        try:
            row |= _cell(models, context, batch, repeats)
        except torch.OutOfMemoryError:
            row["skipped"] = "out of memory"
        rows.append(row)
        advance(index + 1, len(cells))
    return rows


def _cell(models: dict[str, Any], context: int, batch: int, repeats: int) -> dict[str, Any]:
    device, config = models[ORIGINAL].device, models[ORIGINAL].config
    drawn = torch.randint(5, config.vocab_size, (batch, context), generator=torch.Generator().manual_seed(context))
    tokens = drawn.to(device)
    clocks = {name: AttentionClock(model) for name, model in models.items()}
    try:
        calls = {
            name: Timed(lambda model=model: model(input_ids=tokens), clocks[name].end_call)  # type: ignore[misc]
            for name, model in models.items()
        }
        spreads = take_turns(calls, repeats, device)
        attention = {name: clock.last(spreads[name].repeats) for name, clock in clocks.items()}
    finally:
        for clock in clocks.values():
            clock.remove()
    return {
        "forward": timed_figures(spreads, batch * context),
        "forward_attention": timed_figures(attention, batch * context),
    }


def parameters(model: Any) -> int:
    """Count the numbers in a model's weights."""
    return sum(parameter.numel() for parameter in model.parameters())
