"""Latent attention where queries and keys go through a norm: exact in form.

Behind the norm a key is s (g * (W x)), g the norm's weight and s = 1 / size(W x) one number of a head and token. So its
score with a query is the product of both sizes and of what is linear in both inputs, which is what a method compresses.
A method's errors count as at tokens of typical size; the numbers themselves are exact, as they are computed from the
original's own projections, whatever the latent loses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convert_attn.convert.maths.moments import Moments
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.head_norm import HeadNorm
from convert_attn.convert.weights.latent import LatentWeights


@dataclass(frozen=True, kw_only=True)
class NormedLatent:
    """A layer without its norms, and what they do.

    Attributes:
        weights: queries and keys as they leave their norms at tokens of typical size: linear in the input.
        q, k: [H, d, D] and [K, d, D] as they enter them, less the mean that they take off.
        q_bias: [H, d] the same, or None.
        q_gain: [H, d, 1] what the norm multiplies a query by.
        q_size, k_size: [H] and [K] typical sizes that the norms divide by.
    """

    weights: AttentionWeights
    norm: HeadNorm
    q: Tensor
    k: Tensor
    q_bias: Tensor | None
    q_gain: Tensor
    q_size: Tensor
    k_size: Tensor

    @classmethod
    def of(cls, weights: AttentionWeights, norm: HeadNorm, queries: Moments, keys: Moments) -> NormedLatent:
        """Take the norms off.

        Args:
            queries, keys: moments of what they read.
        """
        q_gain, k_gain = weights.q_gain, weights.k_gain
        if q_gain is None or k_gain is None or weights.k_bias is not None:
            raise ValueError("a norm on keys is for keys without a bias, and on queries, too")
        q, k = (_centred(heads.to(torch.float64), norm) for heads in (weights.q, weights.k))
        q_bias = None if weights.q_bias is None else _centred(weights.q_bias.to(torch.float64)[..., None], norm)[..., 0]
        gains = [norm.weight(gain.to(torch.float64)).mT for gain in (q_gain, k_gain)]  # [n, d, 1]
        sizes = [_sizes(q, q_bias, norm, queries), _sizes(k, None, norm, keys)]
        dtype = weights.q.dtype
        linear = replace(
            weights,
            q=(q * gains[0] / sizes[0][:, None, None]).to(dtype),
            k=(k * gains[1] / sizes[1][:, None, None]).to(dtype),
            q_bias=None if q_bias is None else (q_bias * gains[0][..., 0] / sizes[0][:, None]).to(dtype),
            q_gain=None,
            k_gain=None,
        )
        return cls(
            weights=linear,
            norm=replace(norm, centred=False, offset=0.0),
            q=q.to(dtype),
            k=k.to(dtype),
            q_bias=None if q_bias is None else q_bias.to(dtype),
            q_gain=gains[0],
            q_size=sizes[0],
            k_size=sizes[1],
        )

    def normed(self, linear: LatentWeights) -> LatentWeights:
        """Give what a method made of `weights`, with the norms on again."""
        k_size = self.k_size.repeat_interleave(len(self.q) // len(self.k))[:, None, None]
        rope = k_size * self.q_size[:, None, None]
        bias = linear.q_rope_bias
        return replace(
            linear,
            q_nope=self.q,
            q_nope_bias=self.q_bias,
            q_rope=(linear.q_rope * rope).to(linear.q_rope.dtype),
            q_rope_bias=None if bias is None else (bias * rope[..., 0]).to(bias.dtype),
            up_k=(linear.up_k * self.q_gain * k_size).to(linear.up_k.dtype),
            sized=self.k,
            head_norm=self.norm,
        )


def _centred(heads: Tensor, norm: HeadNorm) -> Tensor:
    """[n, d, D] less the mean that the norm takes off, of each head or of all."""
    return heads - heads.mean((0, 1) if norm.together else 1, keepdim=True) if norm.centred else heads


def _sizes(heads: Tensor, bias: Tensor | None, norm: HeadNorm, moments: Moments) -> Tensor:
    """[n] the root mean square of what heads [n, d, D] give, as the norm has it."""
    power = moments.power(heads.flatten(0, 1)).unflatten(0, heads.shape[:2])
    if bias is not None:
        power = power + 2 * bias * (heads @ moments.mean) + bias.square()
    mean = power.mean(1)
    found: Tensor = ((mean.mean().expand_as(mean) if norm.together else mean) + norm.eps).sqrt()
    return found
