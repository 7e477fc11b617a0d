"""Norms on queries and keys, between their projections and their rotation.

Per head (Henry et al., arXiv:2010.04245, section 3, in the form that classes have it: an RMSNorm or a LayerNorm with a
weight), or over the numbers of all heads together. A norm is no linear function, so what is shared is what it reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HeadNorm:
    """What a norm on queries or keys computes: (x - mean x) / sqrt(var x + eps) times its weight, and its bias on top.

    Attributes:
        eps: is added to the mean square.
        centred: the mean is taken off first (LayerNorm), or not (RMSNorm).
        together: the means are over the numbers of all heads, or each head's own.
        offset: what the class adds to the stored weight.
        biased: it has a bias, too, which is added behind the weight.
    """

    eps: float
    centred: bool = False
    together: bool = False
    offset: float = 0.0
    biased: bool = False

    def _mean(self, states: Tensor) -> Tensor:
        """[B, n, T, d] -> [B, n, T, 1], or [B, 1, T, 1] where all heads are taken together."""
        return states.mean((1, 3), keepdim=True) if self.together else states.mean(-1, keepdim=True)

    def weight(self, gain: Tensor) -> Tensor:
        """Give [n, d] as stored -> [n, 1, d] as it multiplies."""
        return (gain + self.offset)[:, None]

    def unweighted(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Give states [B, n, T, d] before the weight, and what they were multiplied by: [B, n or 1, T, 1]."""
        if self.centred:
            states = states - self._mean(states)
        factor = (self._mean(states.square()) + self.eps).rsqrt()
        return states * factor, factor

    def __call__(self, states: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
        """States [B, n, T, d] with the norm's weight [n, d] and, where it has one, its bias [n, d]."""
        found = self.unweighted(states)[0] * self.weight(gain)
        return found if shift is None else found + shift[:, None]


@dataclass(frozen=True)
class Factor:
    """What multiplies some states whatever they are: in the place of a `Slope`.

    Attributes:
        factor: [B, n or 1, T, 1].
        heads: n.
    """

    factor: Tensor
    heads: int

    def along(self, change: Tensor) -> Tensor:
        """Tell what a change [B, n, T, d] of the states makes."""
        return change * self.factor

    def back(self, states: Tensor) -> Tensor:
        """Give the transpose of `along`."""
        return states * self.factor

    def rows(self, part: slice) -> Factor:
        """At some of the tokens."""
        return Factor(self.factor[:, :, part], self.heads)

    def size(self) -> Tensor:
        """Give [n, 1] what a number is multiplied by, root mean square over tokens."""
        return self.factor.square().mean((0, 2)).sqrt().expand(self.heads, 1)


@dataclass(frozen=True, kw_only=True)
class Slope:
    """The norm's derivative at some states, a linear function of a change of them.

    Attributes:
        normed: [B, n, T, d] the states behind the norm, without its weight.
        factor: [B, n or 1, T, 1] what they were multiplied by.
        weight: [n, 1, d].
    """

    norm: HeadNorm
    normed: Tensor
    factor: Tensor
    weight: Tensor

    @classmethod
    def at(cls, norm: HeadNorm, states: Tensor, gain: Tensor) -> Slope:
        """Of the norm with the weight [n, d] at states [B, n, T, d]."""
        normed, factor = norm.unweighted(states)
        return cls(norm=norm, normed=normed, factor=factor, weight=norm.weight(gain))

    def along(self, change: Tensor) -> Tensor:
        """Tell what a change [B, n, T, d] of the states makes behind the norm."""
        return self._projected(change) * self.weight

    def back(self, states: Tensor) -> Tensor:
        """Give the transpose of `along`."""
        return self._projected(states * self.weight)

    def _projected(self, states: Tensor) -> Tensor:
        """Off the direction of the states themselves, which the norm forgets; symmetric."""
        mean = self.norm._mean
        if self.norm.centred:
            states = states - mean(states)
        return self.factor * (states - self.normed * mean(self.normed * states))

    def rows(self, part: slice) -> Slope:
        """At some of the tokens."""
        return Slope(norm=self.norm, normed=self.normed[:, :, part], factor=self.factor[:, :, part], weight=self.weight)

    def size(self) -> Tensor:
        """Give [n, d] what a number is multiplied by, root mean square over tokens."""
        return self.factor.square().mean((0, 2)).sqrt() * self.weight[:, 0].abs()
