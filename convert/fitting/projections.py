"""Which projections of a converted layer are solved for, and what each of them reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convert_attn.convert.fitting.projection import Projection, Weights
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import Rule, latent_of, project, query_sizes
from convert_attn.convert.weights.head_norm import Factor, Slope
from convert_attn.convert.weights.latent import LatentWeights


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A layer's projections, as its weights are now.

    Attributes:
        weights: of the conversion, float32.
        inputs: [B, T, D] batches of what the attention reads.
        looked_at: [B, M, D] of what keys and values are made of.
        tokens, key_tokens, value_tokens: [D, D] second moments of what queries, keys and values read.
    """

    weights: Weights
    inputs: list[Tensor]
    looked_at: list[Tensor]
    rule: Rule
    tokens: Tensor
    key_tokens: Tensor
    value_tokens: Tensor

    def _part(
        self, name: str, columns: slice, turning: Tensor | None, metric: Tensor, latent: bool = False
    ) -> Projection:
        weight: Tensor = getattr(self.weights, name)
        bias: Tensor | None = getattr(self.weights, f"{name}_bias", None)
        if weight.ndim == 2:  # a rotary key that all heads share
            weight, bias = weight[None], None if bias is None else bias[None]
        inputs = self.inputs if name.startswith("q") else self.looked_at
        held: dict[int, Tensor] = {}
        if latent:
            inputs = [latent_of(self.weights, x) for x in inputs if isinstance(self.weights, LatentWeights)]
        if bias is not None:
            weight = torch.cat([weight, bias[..., None]], -1)
            metric = torch.block_diag(metric, torch.ones(1, 1, dtype=metric.dtype, device=metric.device))

        def reads(batch: int) -> Tensor:
            if bias is None:
                return inputs[batch]
            if batch not in held:
                held[batch] = torch.cat([inputs[batch], torch.ones_like(inputs[batch][..., :1])], -1)
            return held[batch]

        gain: Tensor | None = getattr(self.weights, f"{name}_gain", None)
        norm, slopes = self.rule.norm, dict[int, Slope]()

        def slope(batch: int) -> Slope:
            if batch not in slopes:
                assert norm is not None
                assert gain is not None
                slopes[batch] = Slope.at(norm, project(weight, None, reads(batch)), gain)
            return slopes[batch]

        names = (name, "" if bias is None else f"{name}_bias")
        return Projection(
            names=names,
            weight=weight,
            columns=columns,
            turning=turning,
            metric=metric,
            reads=reads,
            scale=self.rule.rotary_scale,
            slope=None if gain is None or norm is None else slope,
        )

    def queries(self) -> list[Projection]:
        """Give what queries are made by: in a latent form without position and with it."""
        w, everything = self.weights, slice(None)
        if isinstance(w, AttentionWeights):
            return [self._part("q", everything, self._turning, self.tokens)]
        d = w.q_nope.shape[1]
        # behind a norm the others stay: it divides by their own size
        parts = [] if w.head_norm else [self._part("q_nope", slice(0, d), None, self.tokens)]
        rotary = [self._part("q_rope", slice(d, None), w.inv_freq, self.tokens)] if w.inv_freq.numel() else []
        return parts + [replace(part, slope=self._query_sizes(w)) for part in rotary]

    def _query_sizes(self, weights: LatentWeights) -> Callable[[int], Slope | Factor] | None:
        if weights.head_norm is None:
            return None
        held: dict[int, Factor] = {}

        def sizes(batch: int) -> Factor:
            if batch not in held:
                factor = query_sizes(weights, self.inputs[batch])
                assert factor is not None
                held[batch] = Factor(factor, len(weights.q_nope))
            return held[batch]

        return sizes

    def keys(self) -> list[Projection]:
        """Give what keys are made by, as `queries`."""
        w, everything = self.weights, slice(None)
        if isinstance(w, AttentionWeights):
            return [self._part("k", everything, self._turning, self.key_tokens)]
        d = w.q_nope.shape[1]
        parts = [self._part("up_k", slice(0, d), None, self._latent_metric(self.key_tokens), latent=True)]
        return parts + (
            [self._part("k_rope", slice(d, None), w.inv_freq, self.key_tokens)] if w.inv_freq.numel() else []
        )

    def values(self) -> Projection:
        """Give what values are made by."""
        if isinstance(self.weights, AttentionWeights):
            return self._part("v", slice(None), None, self.value_tokens)
        return self._part("up_v", slice(None), None, self._latent_metric(self.value_tokens), latent=True)

    @property
    def _turning(self) -> Tensor | None:
        frequencies = self.rule.inv_freq
        return None if frequencies is None else frequencies.to(self.tokens.device)

    def _latent_metric(self, moment: Tensor) -> Tensor:
        assert isinstance(self.weights, LatentWeights)
        down = self.weights.down.to(moment.dtype)
        return down @ moment @ down.T
