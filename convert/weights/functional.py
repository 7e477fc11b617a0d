"""Attention computed straight from weights: what calibration and refit run in place of a block's own attention.

The same few lines serve the original (`AttentionWeights`) and whatever it became (`AttentionWeights` with fewer K/V
heads, `LatentWeights`), so the two differ by their weights and by nothing else. Shapes: B windows of T tokens, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.head_norm import HeadNorm
from convert_attn.convert.weights.latent import NORM_EPS, LatentWeights

_SCORES = 2**26  # scores in memory at once (256 MB in float32): heads are taken in parts


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the scores of a layer become probabilities.

    Attributes:
        scale: what scores are multiplied by.
        inv_freq: [P] frequencies of a head's rotary planes, 0 where one does not turn; None without rotary position.
        rotary_scale: what turning planes are multiplied by, besides (YaRN and LongRoPE have one).
        window: how many tokens back a token sees, None for all.
        slopes: [H] what a head's scores lose per token of distance; None: nothing.
        coarse_slopes: slopes, and their products with a token's place, are rounded to bfloat16, and multiplied by the
            scale as scores are.
        softcap: the size c that scores stay below, as c tanh(score / c) (Gemma 2, arXiv:2408.00118, section 2); None:
            none.
        norm: on queries and keys, where weights have its gains.
        causal: a token sees itself and those before it; else every token sees all.
        across: keys and values come from another text.
        table: [H, buckets] what a head's scores gain, by the bucket of the distance; None: nothing.
        farthest: the distance from which on the last bucket holds.
    """

    scale: float
    inv_freq: Tensor | None = None
    rotary_scale: float = 1.0
    window: int | None = None
    slopes: Tensor | None = None
    coarse_slopes: bool = False
    softcap: float | None = None
    norm: HeadNorm | None = None
    causal: bool = True
    across: bool = False
    table: Tensor | None = None
    farthest: int = 0

    def seen(self, position: int, length: int) -> int:
        """Tell how many of so many tokens, from the first on, hold all that a token at a position may look at."""
        return position + 1 if self.causal else length

    def capped(self, scores: Tensor) -> Tensor:
        """Scores, already multiplied by the scale, within the soft cap."""
        return scores if self.softcap is None else (scores / self.softcap).tanh() * self.softcap


def turn(states: Tensor, inv_freq: Tensor, scale: float = 1.0, positions: Tensor | None = None) -> Tensor:
    """Give states [..., T, d] with plane p = (p, p + d/2) turned by position x inv_freq[p].

    Args:
        positions: [T] of the tokens; None: 0..T-1.
    """
    if positions is None:
        positions = torch.arange(states.shape[-2], device=states.device)
    angle = positions.to(torch.float64)[:, None] * inv_freq.to(states.device)
    turning = torch.where(inv_freq.to(states.device) == 0, 1.0, scale)
    cos, sin = (angle.cos() * turning).to(states.dtype), (angle.sin() * turning).to(states.dtype)
    found = states * torch.cat([cos, cos], -1)
    half = cos.shape[-1]
    first, second = states[..., :half], states[..., half:]
    found[..., :half].addcmul_(second, sin, value=-1)
    found[..., half:].addcmul_(first, sin)
    return found


def project(heads: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Give outputs [B, n, T, a] of heads [n, a, D] on x [B, T, D]."""
    out = (x @ heads.flatten(0, 1).T).unflatten(-1, heads.shape[:2])
    biased: Tensor = out if bias is None else out + bias
    return biased.transpose(1, 2)


def latent_of(weights: LatentWeights, x: Tensor) -> Tensor:
    """Give the latent [B, T, r] that keys and values are made of, for x [B, T, D]."""
    latent = x @ weights.down.T
    if not weights.norm:
        return latent
    power = latent.square().mean(-1, keepdim=True)
    return latent * ((weights.mean_power + NORM_EPS) / (power + NORM_EPS)).sqrt()


def normed(heads: Tensor, gain: Tensor | None, shift: Tensor | None, rule: Rule) -> Tensor:
    """Give queries or keys [B, n, T, d] behind their norm with the weight and the bias [n, d], where there is one."""
    return heads if gain is None or rule.norm is None else rule.norm(heads, gain, shift)


def queries(
    weights: AttentionWeights | LatentWeights, x: Tensor, rule: Rule, positions: Tensor | None = None
) -> Tensor:
    """Give turned queries [B, H, T, e] of tokens x [B, T, D]; positions as in `turn`."""
    if isinstance(weights, AttentionWeights):
        query = normed(project(weights.q, weights.q_bias, x), weights.q_gain, weights.q_shift, rule)
        return query if rule.inv_freq is None else turn(query, rule.inv_freq, rule.rotary_scale, positions)
    query = project(weights.q_nope, weights.q_nope_bias, x)
    size = query_sizes(weights, x)
    if weights.inv_freq.numel():
        rotary = project(weights.q_rope, weights.q_rope_bias, x)
        query = torch.cat([query, turn(rotary, weights.inv_freq, rule.rotary_scale, positions)], -1)
    return query if size is None else query * size


def query_sizes(weights: LatentWeights, x: Tensor) -> Tensor | None:
    """[B, H or 1, T, 1] what the norm multiplies queries of tokens x [B, T, D] by; None without one."""
    if weights.head_norm is None:
        return None
    return weights.head_norm.unweighted(project(weights.q_nope, weights.q_nope_bias, x))[1]


def key_sizes(weights: LatentWeights, x: Tensor) -> Tensor | None:
    """[B, H, T, 1] what the norm multiplies keys of tokens x [B, T, D] by, head by query head; None without one."""
    if weights.head_norm is None or weights.sized is None:
        return None
    factor = weights.head_norm.unweighted(project(weights.sized, None, x))[1]
    return factor.repeat_interleave(len(weights.q_nope) // factor.shape[1], 1)


def keys(weights: AttentionWeights | LatentWeights, x: Tensor, rule: Rule) -> Tensor:
    """Give turned keys [B, K, T, e] of tokens x [B, T, D] at 0..T-1."""
    if isinstance(weights, AttentionWeights):
        key = normed(project(weights.k, weights.k_bias, x), weights.k_gain, weights.k_shift, rule)
        return key if rule.inv_freq is None else turn(key, rule.inv_freq, rule.rotary_scale)
    key = project(weights.up_k, None, latent_of(weights, x))
    if weights.inv_freq.numel():
        bias = None if weights.k_rope_bias is None else weights.k_rope_bias[None]
        rotary = turn(project(weights.k_rope[None], bias, x), weights.inv_freq, rule.rotary_scale)
        key = torch.cat([key, rotary.expand(-1, key.shape[1], -1, -1)], -1)
    size = key_sizes(weights, x)
    return key if size is None else key * size


def values(weights: AttentionWeights | LatentWeights, x: Tensor) -> Tensor:
    """Give values [B, K, T, a] of tokens x [B, T, D]."""
    if isinstance(weights, AttentionWeights):
        return project(weights.v, weights.v_bias, x)
    return project(weights.up_v, None, latent_of(weights, x))


@dataclass(frozen=True)
class _Heads:
    """Turned queries [B, H, T, e], keys [B, K, T, e] and values [B, K, T, a], for weights of either form."""

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class OtherSide:
    """What a decoder's tokens meet on the other side, and where either side of a pair is filled up.

    Attributes:
        states: [B, M, D] what the encoder gives.
        given: [B, M] True where the source has a token; None: everywhere.
        asked: [B, T] True where the target has a token with a next one, which counts; None: everywhere.
    """

    states: Tensor
    given: Tensor | None = None
    asked: Tensor | None = None

    def to(self, device: str | torch.device) -> OtherSide:
        """Give it on a device."""
        return self._each(lambda part: part.to(device))

    def at(self, windows: slice | Tensor) -> OtherSide:
        """Give it of some windows."""
        return self._each(lambda part: part[windows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> OtherSide:
        given, asked = (None if mask is None else change(mask) for mask in (self.given, self.asked))
        return OtherSide(change(self.states), given, asked)


def across(others: Tensor | None) -> OtherSide | None:
    """Give what an encoder gives, [B, M, D], of sources of one length; None of None."""
    return None if others is None else OtherSide(others)


def batched(side: OtherSide | None, count: int, size: int) -> list[OtherSide | None]:
    """Give the other side of `count` windows in batches, of None where there is none."""
    starts = range(0, count, size)
    return [None if side is None else side.at(slice(start, start + size)) for start in starts]


def may_not_look(rule: Rule, length: int, positions: Tensor) -> Tensor:
    """Give [r, T] True where a token at one of r positions may not look, of T tokens at 0..T-1."""
    offset = positions[:, None] - torch.arange(length, device=positions.device)
    hidden = offset < 0 if rule.causal else torch.zeros_like(offset, dtype=torch.bool)
    return hidden if rule.window is None else hidden | (offset >= rule.window)


def with_filling(hidden: Tensor, rule: Rule, side: OtherSide) -> Tensor:
    """Add to where a token may not look, [r, M], what fills up shorter sources: [B, 1, r, M], or as it is."""
    if side.given is None or not rule.across:
        return hidden
    return hidden | ~side.given[:, None, None, : hidden.shape[-1]]


def distance_bias(rule: Rule, length: int, positions: Tensor) -> Tensor | None:
    """[H, r, T] what is added to scores of queries at r positions and T tokens at 0..T-1; None where nothing is."""
    if rule.slopes is None and rule.table is None:
        return None
    if rule.slopes is not None and rule.coarse_slopes:
        places = torch.arange(length, device=positions.device, dtype=torch.bfloat16)
        rounded = rule.slopes.to(places)[:, None, None] * places
        return rounded.float().expand(-1, len(positions), -1) * rule.scale
    ahead = torch.arange(length, device=positions.device) - positions[:, None]
    if rule.table is not None:
        return rule.table.to(positions.device)[:, buckets(-ahead, rule.table.shape[1], rule.farthest)]
    assert rule.slopes is not None
    return rule.slopes.to(positions.device)[:, None, None] * ahead


def buckets(back: Tensor, count: int, farthest: int) -> Tensor:
    """Give the bucket of each distance back, of so many: T5's, for tokens that look at none ahead of them.

    Half of them are for one distance each, the others for ranges that grow like the distance up to the farthest
    (Raffel et al., arXiv:1910.10683, section 2.1; rounded in float32, as the class does).
    """
    back, exact = back.clamp_min(0), count // 2
    share = torch.log(back.float() / exact) / math.log(farthest / exact)
    far = exact + (share * (count - exact)).clamp_min(0).long()
    return torch.where(back < exact, back, far.clamp_max(count - 1))


def attention_of(
    scores: Tensor, rule: Rule, *, hidden: Tensor, bias: Tensor | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Turn scores into attention, [B, h, r, T]; rows sum to one, less what goes to a sink. The scores are not kept.

    Args:
        scores: multiplied by the scale.
        hidden: [r, T], or [B, 1, r, T], True where one may not look.
        bias: [h, r, T] of the same heads, as of `distance_bias`.
        sinks: [h] of the same heads.
    """
    scores = rule.capped(scores)
    if bias is not None:
        scores += bias
    scores = scores.masked_fill_(hidden, -torch.inf)
    if sinks is None:
        return scores.softmax(-1)
    extra = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    found: Tensor = torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
    return found


@dataclass(frozen=True)
class Attention:
    """One layer's attention on a batch.

    Attributes:
        weights: of either form, in the dtype of x.
        x: [B, T, D] the block's input, after the norm.
        side: of an encoder-decoder; where the rule says so, keys and values come from it, else from x.
    """

    weights: AttentionWeights | LatentWeights
    x: Tensor
    rule: Rule
    side: OtherSide | None = None

    @property
    def others(self) -> Tensor | None:
        """[B, M, D] what an encoder gives, where keys and values come from that."""
        return self.side.states if self.side is not None and self.rule.across else None

    @property
    def asked(self) -> Tensor | None:
        """[B, T] True where a token counts; None: everywhere."""
        return None if self.side is None else self.side.asked

    @property
    def looked_at(self) -> Tensor:
        """[B, M, D] what keys and values are made of."""
        return self.x if self.others is None else self.others

    @cached_property
    def _heads(self) -> _Heads:
        weights, x, rule = self.weights, self.x, self.rule
        return _Heads(queries(weights, x, rule), keys(weights, self.looked_at, rule), values(weights, self.looked_at))

    @cached_property
    def _hidden(self) -> Tensor:
        """[T, M], or [B, 1, T, M], True where a token may not look."""
        positions = torch.arange(self.x.shape[1], device=self.x.device)
        hidden = may_not_look(self.rule, self.looked_at.shape[1], positions)
        return hidden if self.side is None else with_filling(hidden, self.rule, self.side)

    @cached_property
    def _bias(self) -> Tensor | None:
        positions = torch.arange(self.x.shape[1], device=self.x.device)
        return distance_bias(self.rule, self.looked_at.shape[1], positions)

    def probabilities(self, rows: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the heads with their attention probabilities [B, part, r, T], of queries at `rows` [r] or of all."""
        query, key, hidden = self._heads.query, self._heads.key, self._hidden
        bias = self._bias
        if rows is not None:
            query, hidden = query[:, :, rows], hidden[..., rows, :]
            bias = None if bias is None else bias[:, rows]
        heads, per_key = query.shape[1], query.shape[1] // key.shape[1]
        at_once = max(1, _SCORES // (query.shape[0] * query.shape[2] * key.shape[2]))
        for begin in range(0, heads, at_once):
            part = slice(begin, min(begin + at_once, heads))
            keys = key[:, [head // per_key for head in range(part.start, part.stop)]]
            scores = (query[:, part] * self.rule.scale) @ keys.mT
            sinks = None if self._sinks is None else self._sinks[part]
            of_heads = None if bias is None else bias[part]
            yield part, attention_of(scores, self.rule, hidden=hidden, bias=of_heads, sinks=sinks)

    @property
    def _sinks(self) -> Tensor | None:
        return self.weights.sinks if isinstance(self.weights, AttentionWeights) else None

    def head_outputs(self) -> Tensor:
        """Tell what the output projection reads: [B, T, H, a]."""
        if self.rule.softcap is not None or self._sinks is not None:  # which the fused kernel does not know
            return torch.cat([self.attended(part, seen) for part, seen in self.probabilities()], 2)
        heads = self._heads
        grouped = heads.query.shape[1] != heads.key.shape[1]
        bias, plain = self._bias, self.rule.window is None and self._bias is None and self._hidden.ndim == 2
        seen = None if plain else ~self._hidden
        if bias is not None and seen is not None:
            seen = torch.where(seen, bias, -torch.inf).to(heads.query.dtype)
        # the fused kernel takes values as wide as keys only, and is worth the padding
        width = heads.value.shape[-1]
        mixed: Tensor = scaled_dot_product_attention(
            heads.query,
            heads.key,
            pad(heads.value, (0, max(0, heads.key.shape[-1] - width))),
            attn_mask=seen,
            is_causal=plain and self.rule.causal,
            scale=self.rule.scale,
            enable_gqa=grouped,
        )
        return mixed[..., :width].transpose(1, 2)

    def attended(self, part: slice, probabilities: Tensor) -> Tensor:
        """Give the values of a part of the heads under their probabilities: [B, T, part, a]."""
        value = self._heads.value
        per_key = self._heads.query.shape[1] // value.shape[1]
        values = value[:, [head // per_key for head in range(part.start, part.stop)]]
        return (probabilities @ values).transpose(1, 2)

    def output(self, heads: Tensor | None = None) -> Tensor:
        """Give the attention's output [B, T, D], from `head_outputs` where they are known already."""
        heads = self.head_outputs() if heads is None else heads
        out = torch.einsum("btha,hDa->btD", heads, self.weights.o)
        return out if self.weights.o_bias is None else out + self.weights.o_bias
