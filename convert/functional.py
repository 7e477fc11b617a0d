"""Attention computed straight from weights: what calibration and refit run in place of a block's own attention.

The same few lines serve the original (`AttentionWeights`) and whatever it became (`AttentionWeights` with fewer K/V
heads, `LatentWeights`), so the two differ by their weights and by nothing else. Shapes: B windows of T tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from convert_attn.convert.attention import AttentionWeights
from convert_attn.convert.geometry import Geometry
from convert_attn.convert.latent import NORM_EPS, LatentWeights

_SCORES = 2**26  # scores in memory at once (256 MB in float32): heads are taken in parts


@dataclass(frozen=True)
class Rule:
    """How the scores of a layer become probabilities.

    Attributes:
        scale: what scores are multiplied by.
        inv_freq: [P] frequencies of a head's rotary planes, 0 where one does not turn; None without rotary position.
        rotary_scale: what turning planes are multiplied by, besides (YaRN and LongRoPE have one).
        window: how many tokens back a token sees, None for all.
    """

    scale: float
    inv_freq: Tensor | None = None
    rotary_scale: float = 1.0
    window: int | None = None


def layer_rule(sizes: Geometry, layer: int) -> Rule:
    """The rule of a layer of the original, as its class has it (`geometry` asks the class; no weights are read)."""
    return Rule(
        scale=sizes.scale(layer),
        inv_freq=sizes.plane_frequencies() if sizes.inv_freq else None,
        rotary_scale=sizes.rotary_scale,
        window=sizes.windows[layer] if sizes.windows else None,
    )


def turn(states: Tensor, inv_freq: Tensor, scale: float = 1.0) -> Tensor:
    """States [..., T, d] of tokens at 0..T-1, with plane p = (p, p + d/2) turned by position x inv_freq[p]."""
    length = states.shape[-2]
    angle = torch.arange(length, dtype=torch.float64, device=states.device)[:, None] * inv_freq.to(states.device)
    turning = torch.where(inv_freq.to(states.device) == 0, 1.0, scale)
    cos, sin = (angle.cos() * turning).to(states.dtype), (angle.sin() * turning).to(states.dtype)
    first, second = states.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _project(heads: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """heads [n, a, D] on x [B, T, D]: [B, n, T, a]."""
    out = (x @ heads.flatten(0, 1).T).unflatten(-1, heads.shape[:2])
    biased: Tensor = out if bias is None else out + bias
    return biased.transpose(1, 2)


@dataclass(frozen=True)
class _Heads:
    """Turned queries [B, H, T, e], keys [B, K, T, e] and values [B, K, T, a], for weights of either form."""

    query: Tensor
    key: Tensor
    value: Tensor


def _shared_heads(weights: AttentionWeights, x: Tensor, rule: Rule) -> _Heads:
    query, key = _project(weights.q, weights.q_bias, x), _project(weights.k, weights.k_bias, x)
    if rule.inv_freq is not None:
        query, key = (turn(part, rule.inv_freq, rule.rotary_scale) for part in (query, key))
    return _Heads(query, key, _project(weights.v, weights.v_bias, x))


def _latent_heads(weights: LatentWeights, x: Tensor, rule: Rule) -> _Heads:
    latent = x @ weights.down.T
    if weights.norm:
        power = latent.square().mean(-1, keepdim=True)
        latent = latent * ((weights.mean_power + NORM_EPS) / (power + NORM_EPS)).sqrt()
    query = _project(weights.q_nope, weights.q_nope_bias, x)
    key, value = _project(weights.up_k, None, latent), _project(weights.up_v, None, latent)
    if weights.inv_freq.numel():
        q_rope = turn(_project(weights.q_rope, weights.q_rope_bias, x), weights.inv_freq, rule.rotary_scale)
        bias = None if weights.k_rope_bias is None else weights.k_rope_bias[None]
        k_rope = turn(_project(weights.k_rope[None], bias, x), weights.inv_freq, rule.rotary_scale)
        query = torch.cat([query, q_rope], -1)
        key = torch.cat([key, k_rope.expand(-1, key.shape[1], -1, -1)], -1)
    return _Heads(query, key, value)


@dataclass(frozen=True)
class Attention:
    """One layer's attention on a batch.

    Attributes:
        weights: of either form, in the dtype of x.
        x: [B, T, D] the block's input, after the norm.
    """

    weights: AttentionWeights | LatentWeights
    x: Tensor
    rule: Rule

    @cached_property
    def _heads(self) -> _Heads:
        if isinstance(self.weights, LatentWeights):
            return _latent_heads(self.weights, self.x, self.rule)
        return _shared_heads(self.weights, self.x, self.rule)

    @cached_property
    def _hidden(self) -> Tensor:
        """[T, T] True where a token may not look."""
        t = torch.arange(self.x.shape[1], device=self.x.device)
        offset = t[:, None] - t
        hidden = offset < 0
        return hidden if self.rule.window is None else hidden | (offset >= self.rule.window)

    def probabilities(self) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the heads with their attention probabilities [B, part, T, T]."""
        query, key = self._heads.query, self._heads.key
        heads, per_key = query.shape[1], query.shape[1] // key.shape[1]
        at_once = max(1, _SCORES // (query.shape[0] * query.shape[2] ** 2))
        for begin in range(0, heads, at_once):
            part = slice(begin, min(begin + at_once, heads))
            keys = key[:, [head // per_key for head in range(part.start, part.stop)]]
            scores = (query[:, part] * self.rule.scale) @ keys.mT
            yield part, scores.masked_fill_(self._hidden, -torch.inf).softmax(-1)

    def head_outputs(self) -> Tensor:
        """What the output projection reads: [B, T, H, a]."""
        heads = self._heads
        grouped = heads.query.shape[1] != heads.key.shape[1]
        plain = self.rule.window is None
        # the fused kernel takes values as wide as keys only, and is worth the padding
        width = heads.value.shape[-1]
        mixed: Tensor = scaled_dot_product_attention(
            heads.query,
            heads.key,
            pad(heads.value, (0, max(0, heads.key.shape[-1] - width))),
            attn_mask=None if plain else ~self._hidden,
            is_causal=plain,
            scale=self.rule.scale,
            enable_gqa=grouped,
        )
        return mixed[..., :width].transpose(1, 2)

    def attended(self, part: slice, probabilities: Tensor) -> Tensor:
        """The values of a part of the heads under their probabilities: [B, T, part, a]."""
        value = self._heads.value
        per_key = self._heads.query.shape[1] // value.shape[1]
        values = value[:, [head // per_key for head in range(part.start, part.stop)]]
        return (probabilities @ values).transpose(1, 2)

    def output(self, heads: Tensor | None = None) -> Tensor:
        """The attention's output [B, T, D], from `head_outputs` where they are known already."""
        heads = self.head_outputs() if heads is None else heads
        out = torch.einsum("btha,hDa->btD", heads, self.weights.o)
        return out if self.weights.o_bias is None else out + self.weights.o_bias
