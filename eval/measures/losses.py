"""Quality of a conversion against its original on a text: overall, by position in the window, and by document."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convert_attn.eval.measures.passages import Passages
from convert_attn.eval.measures.quality import FIGURES, Advance, Estimate, Tally, batch_size, ratio, token_figures

_BUCKETS = 16


def position_edges(length: int) -> list[int]:
    """Tell where the ranges of positions begin, and the end: predicted tokens have the positions 1 to length - 1.

    Powers of two up to 1/8 of the window, where loss falls fast, then ranges of equal width.
    """
    edges = [1]
    while edges[-1] * 2 < length // 8:
        edges.append(edges[-1] * 2)
    step = max(1, (length - edges[-1]) // _BUCKETS * 2)
    return [*edges, *range(edges[-1] + step, length - step // 2, step), length]


def _ratio_of(tally: Tally, figure: str, base: str) -> dict[str, float | None]:
    """exp of the mean difference: a perplexity over the original's, with the error of the exponent."""
    difference = tally.estimate(figure, base)
    value = math.exp(difference.mean)
    return Estimate(value, None if difference.error is None else value * difference.error).as_dict()


def _perplexity(loss: Estimate) -> dict[str, float | None]:
    value = math.exp(loss.mean)
    return Estimate(value, None if loss.error is None else value * loss.error).as_dict()


def _bits(loss: Estimate, bytes_per_token: float) -> dict[str, float | None]:
    scale = 1 / (math.log(2) * bytes_per_token)
    return Estimate(loss.mean * scale, None if loss.error is None else loss.error * scale).as_dict()


def compare_on_text(original: Any, converted: Any, passages: Passages, advance: Advance) -> dict[str, Any]:
    """Tell what a conversion lost on a text.

    Returns:
        estimates (mean, error) of perplexity, bits per byte, their differences, KL in nats per token, agreement;
        `positions`, a list of ranges; and sums `per_cluster`.
    """
    clusters, kind = passages.clusters()
    targets = passages.targets
    edges = position_edges(targets.shape[1])
    places = torch.bucketize(torch.arange(1, edges[-1]), torch.tensor(edges[1:-1]), right=True)
    tally = Tally(int(clusters.max()) + 1, len(edges) - 1)
    size = batch_size(targets.shape[1], original.config.vocab_size, original.device.type)
    done = 0
    for batch, owners, part in zip(
        passages.windows.split(size), clusters.split(size), targets.split(size), strict=True
    ):
        there = part[:, 1:] >= 0
        figures = token_figures(converted, batch, original)[:, there]
        tally.add(figures, owners[:, 1:][there], places.expand(len(batch), -1)[there])
        done += len(batch)
        advance(done, len(passages.windows))
    return _summary(tally, edges, passages, kind)


def _summary(tally: Tally, edges: list[int], passages: Passages, kind: str) -> dict[str, Any]:
    loss, original_loss = tally.estimate("loss"), tally.estimate("reference_loss")
    difference = tally.estimate("loss", "reference_loss")
    per_byte = passages.bytes_per_token
    return {
        "tokens": passages.tokens,
        "clusters": tally.counts.shape[0],
        "clustered_by": kind,
        "perplexity": _perplexity(loss),
        "original_perplexity": _perplexity(original_loss),
        "perplexity_ratio": _ratio_of(tally, "loss", "reference_loss"),
        "loss": loss.as_dict(),
        "original_loss": original_loss.as_dict(),
        "loss_difference": difference.as_dict(),
        "bits_per_byte": _bits(loss, per_byte),
        "original_bits_per_byte": _bits(original_loss, per_byte),
        "bits_per_byte_difference": _bits(difference, per_byte),
        "kl": tally.estimate("kl").as_dict(),
        "top1": tally.estimate("top1").as_dict(),
        "top5": tally.estimate("top5").as_dict(),
        "accuracy": tally.estimate("correct").as_dict(),
        "original_accuracy": tally.estimate("reference_correct").as_dict(),
        "positions": [_position(tally, edges, index) for index in range(len(edges) - 1)],
        "per_cluster": {
            "tokens": tally.counts.sum(1).tolist(),
            "kl": tally.per_cluster("kl"),
            "loss": tally.per_cluster("loss"),
            "original_loss": tally.per_cluster("reference_loss"),
        },
    }


def _position(tally: Tally, edges: list[int], index: int) -> dict[str, Any]:
    return {
        "from": edges[index],
        "to": edges[index + 1] - 1,
        "loss": tally.estimate("loss", position=index).as_dict(),
        "original_loss": tally.estimate("reference_loss", position=index).as_dict(),
        "loss_difference": tally.estimate("loss", "reference_loss", position=index).as_dict(),
        "kl": tally.estimate("kl", position=index).as_dict(),
    }


def sequences(pool: Tensor, distance: int, passage: int, count: int) -> Tensor:
    """Give token sequences in which a passage of the text comes back: [count, distance + passage].

    A passage, other text, and the passage again, which begins `distance` tokens after the first time.

    Args:
        pool: [n] tokens of the text.
    """
    generator = torch.Generator().manual_seed(distance)

    def piece(length: int) -> Tensor:
        starts = torch.randint(len(pool) - length + 1, (count,), generator=generator)
        return pool[starts[:, None] + torch.arange(length)]

    repeated = piece(passage)
    return torch.cat([repeated, piece(distance - passage), repeated], 1)


def probe_distances(length: int, passage: int) -> list[int]:
    """Twice the passage and its doublings, and the farthest that the window allows."""
    farthest = length - passage
    distances = []
    distance = 2 * passage
    while distance < farthest:
        distances.append(distance)
        distance *= 2
    return [*distances, farthest]


def probe(
    original: Any, converted: Any, passages: Passages, advance: Advance, *, passage: int = 32, count: int = 32
) -> list[dict[str, Any]]:
    """How well tokens are copied from far back (a probe as in Olsson et al. 2022, "In-context Learning and Induction
    Heads", on passages of the text instead of random tokens).

    Only the repeated passage but its first token counts. The gain is the loss the first time minus the loss the second
    time, in nats per token: what a model takes from the earlier copy. Errors are over sequences.

    Returns:
        one entry per distance; none where a window cannot hold a passage three times.
    """
    length = passages.windows.shape[1]
    pool = passages.windows.flatten()
    rows = []
    distances = probe_distances(length, passage) if length >= 3 * passage else []
    for index, distance in enumerate(distances):
        batch = sequences(pool, distance, passage, count)
        tally = Tally(count, 3)  # first time, between, second time
        places = torch.ones(batch.shape[1] - 1, dtype=torch.int64)
        places[: passage - 1], places[-(passage - 1) :] = 0, 2
        size = batch_size(batch.shape[1], original.config.vocab_size, original.device.type)
        for begin in range(0, count, size):
            part = batch[begin : begin + size]
            owners = torch.arange(begin, begin + len(part))[:, None].expand(-1, len(places))
            tally.add(token_figures(converted, part, original), owners, places.expand(len(part), -1))
        rows.append(_probe_row(tally, distance))
        advance(index + 1, len(distances))
    return rows


def _probe_row(tally: Tally, distance: int) -> dict[str, Any]:
    def gain(figure: str) -> dict[str, float | None]:
        sums = tally.sums[FIGURES.index(figure)]
        return ratio(sums[:, 0] - sums[:, 2], tally.counts[:, 2]).as_dict()

    return {
        "distance": distance,
        "original_gain": gain("reference_loss"),
        "gain": gain("loss"),
        "loss_difference": tally.estimate("loss", "reference_loss", position=2).as_dict(),
        "kl": tally.estimate("kl", position=2).as_dict(),
        "original_accuracy": tally.estimate("reference_correct", position=2).as_dict(),
        "accuracy": tally.estimate("correct", position=2).as_dict(),
    }
