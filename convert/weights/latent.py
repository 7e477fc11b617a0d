"""A block whose keys and values come out of one low-rank latent: what MLA methods return.

Shape letters as in `attention`; besides, r latent size, R size of the shared rotary key (a whole number of planes).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convert_attn.convert.weights.head_norm import HeadNorm

NORM_EPS = 1e-6  # DeepSeek's, of a norm on the latent


@dataclass(frozen=True, kw_only=True)
class LatentWeights:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Cached are c = down x and the rotated k_rope x + k_rope_bias. Head i scores a key at offset D by
    (q_nope_i x)^T up_k_i c + (q_rope_i x)^T R_-D (k_rope x), and its value is up_v_i c.

    Where queries and keys are normed, both are multiplied by the inverse size of what the norm reads: of q_nope x, and
    of sized x; the norm's weights are in up_k and q_rope, and what it takes off (a mean) is off q_nope and `sized`.

    Attributes:
        q_nope: [H, d, D]; q_nope_bias [H, d] or None.
        q_rope: [H, R, D]; q_rope_bias [H, R] or None.
        down: [r, D].
        k_rope: [R, D]; k_rope_bias [R] or None.
        up_k: [H, d, r].
        up_v: [H, d, r].
        o: [H, D, d]; o_bias [D] or None.
        norm: an RMSNorm normalises c in front of the cache; its gain is the typical size of c.
        power: [r] E[c_j^2] of each channel of c, where it is known.
        input_power: E[x_j^2] averaged over the channels of x.
        inv_freq: [R / 2] radians per token of the rotary planes, (p, p + R/2) being plane p.
        sized: [K, d, D] the keys whose sizes the norm divides by, None without one.
        head_norm: how sizes are taken.
    """

    q_nope: Tensor
    q_rope: Tensor
    down: Tensor
    k_rope: Tensor
    up_k: Tensor
    up_v: Tensor
    o: Tensor
    inv_freq: Tensor
    q_nope_bias: Tensor | None = None
    q_rope_bias: Tensor | None = None
    k_rope_bias: Tensor | None = None
    o_bias: Tensor | None = None
    norm: bool = False
    power: Tensor | None = None
    input_power: float = 1.0
    sized: Tensor | None = None
    head_norm: HeadNorm | None = None

    @property
    def mean_power(self) -> float:
        """E[c_j^2] averaged over the channels of c, 1 where it is not known."""
        return 1.0 if self.power is None else float(self.power.mean())


@dataclass(frozen=True)
class LatentSizes:
    """How large the cache of one layer is to be.

    Attributes:
        rank: r.
        rope_dim: R, even; 0 without rotary position.
        frequencies: the R / 2 frequencies of the rotary planes where the class prescribes them; None: free choice.
    """

    rank: int
    rope_dim: int
    frequencies: tuple[float, ...] | None = None
