"""The shared rotary key of an MLA conversion; all that needs no position is left to the latent (`latent_basis`).

Rows K (R of them, every plane with its own frequency) and a map T_i [R, d] per query head minimise
the part of the score that varies with the offset D,

    sum_i E | q_i^T (R_-D - E R_-D) k_i  -  (T_i q_i)^T (S_-D - E S_-D) K y |^2,

S being the rotation of K's planes. What does not vary goes to the position-free keys

    F_i = E[R_-D] Wk_i - T_i^T E[S_-D] K,

which take the place of Wk_i for the latent. All expectations are over the offsets a head attends to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convert_attn.convert.maths.head_sharing import damped_solve
from convert_attn.convert.maths.rotary import MeanConjugation, Offsets, characteristic, from_planes
from convert_attn.convert.maths.shared_key import RotaryKeys, momentum, plane_power

# Prescribed frequencies may be nearly the same over the offsets that are attended to: differences of planes, however
# large the weights they take, then fit a little better. At least so much is charged for a product, as a share of its
# square; it is what fp16 would cost.
_PRESCRIBED = 2.4e-7


def _centred_turn(left: Tensor, right: Tensor, offsets: Offsets) -> MeanConjugation:
    """E[S_D X R_-D] - E[S_D] X E[R_-D] for X [H, 2a, 2b], S with frequencies `left` [a], R with `right` [b].

    The covariance of the two rotations around X; `inverse` turns both the other way.
    """
    left_mean, right_mean = characteristic(offsets, left)[:, :, None], characteristic(offsets, right)[:, None]
    minus = characteristic(offsets, left[:, None] - right[None]) - left_mean * right_mean.conj()
    plus = characteristic(offsets, left[:, None] + right[None]) - left_mean * right_mean
    return MeanConjugation(minus, plus)


def mean_rotation(frequencies: Tensor, offsets: Offsets) -> Tensor:
    """E[R_-D] per head: [H, 2P, 2P]."""
    phases = torch.diag_embed(characteristic(offsets, -frequencies))
    return from_planes(phases, torch.zeros_like(phases))


def _components(keys: RotaryKeys) -> tuple[Tensor, Tensor]:
    """Complex PCA across heads in every plane: energies [P, K] and mixing scalars [P, K, K] (component, head)."""
    overlap, size = keys.plane_overlap
    values, vectors = torch.linalg.eigh(size[:, :, None] * overlap * size[:, None])
    return values.clamp_min(0), vectors.mT.conj() * size[:, None]


def _benefit(keys: RotaryKeys, energies: Tensor) -> Tensor:
    """[P, K] what keeping each component rotary saves: its energy x the share that the mean rotation misses."""
    mean = characteristic(keys.offsets, keys.rotary.inv_freq.to(torch.float64)).abs().square().mean(0)
    return energies * (1 - mean)[:, None]


@dataclass(frozen=True)
class SharedRotaryKey:
    """The result of the fit.

    Attributes:
        mixing: [R, K, d], the rotary key as a mixture of the keys.
        maps: [H, R, d], T.
        inv_freq: [R / 2].
    """

    mixing: Tensor
    maps: Tensor
    inv_freq: Tensor


def _start(layer: RotaryKeys, planes: int, frequencies: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
    """First rotary rows [2 planes, K, d] and their frequencies [planes].

    Free choice: the (plane, component) pairs of largest benefit. Prescribed frequencies: for each the best component,
    not yet used, of the plane that turns most nearly as fast.
    """
    keys, d = layer.gram.shape[:2]
    own = layer.rotary.inv_freq.to(torch.float64)
    energies, scalars = _components(layer)
    if frequencies is None:
        picks = _benefit(layer, energies).flatten().topk(planes).indices
        chosen = [(int(i) // keys, int(i) % keys) for i in picks]
        inv_freq = own[picks // keys]
    else:
        inv_freq = torch.tensor(frequencies, dtype=torch.float64)
        # a plane that is taken more often than it has components gives its weakest one again
        chosen = [(plane, max(keys - 1 - before, 0)) for plane, before in layer.rotary.nearest(frequencies)]
    row = torch.zeros(planes, d // 2, keys, dtype=torch.complex128)
    for n, (plane, component) in enumerate(chosen):
        row[n, plane] = scalars[plane, component]
    linear = row.permute(2, 0, 1)  # [K, planes, P]
    return from_planes(linear, torch.zeros_like(linear)).transpose(0, 1), inv_freq


def _whole(layer: RotaryKeys, planes: Tensor) -> SharedRotaryKey:
    """A rotary key with room for some planes of every key: each as it is, and nothing of them is left to the latent.

    A fit would come to the same, but for its damping, which leaves to the latent what it hardly sees turn.
    """
    keys, d = layer.gram.shape[:2]
    every = torch.eye(keys * d, dtype=torch.float64).view(keys, 2, d // 2, keys, d)[:, :, planes]
    mixing = every.transpose(0, 1).reshape(-1, keys, d)  # planes (p, p + R/2)
    maps = mixing[:, layer.key_of].transpose(0, 1)  # [H, R, d]
    return SharedRotaryKey(mixing, maps.contiguous(), layer.rotary.inv_freq.to(torch.float64)[planes].repeat(keys))


def fit_shared_rotary_key(
    layer: RotaryKeys, rope_dim: int, frequencies: tuple[float, ...] | None = None, sweeps: int = 12
) -> SharedRotaryKey:
    """Give alternating least squares for the shared rotary key of a layer, with momentum as in `shared_key`.

    Args:
        rope_dim: R, at most the numbers of all keys that turn.
        frequencies: prescribed ones, None for a free choice.
        sweeps: alternations; 0 leaves the complex PCA as it starts.
    """
    keys = layer.gram.shape[0]
    own = layer.rotary.inv_freq.to(torch.float64)
    for planes in (own != 0, torch.ones_like(own, dtype=torch.bool)):
        if frequencies is None and rope_dim == keys * 2 * int(planes.sum()):
            return _whole(layer, planes)
    mixing, inv_freq = _start(layer, rope_dim // 2, frequencies)
    damping = layer.damping if frequencies is None else max(layer.damping, _PRESCRIBED)
    cross_turn = _centred_turn(inv_freq, own, layer.offsets)
    self_turn = _centred_turn(inv_freq, inv_freq, layer.offsets)
    rows = layer.gram.flatten(2).flatten(0, 1)  # [K d, K d]
    size: Tensor | None = None  # E |K y|^2, which stays what it is at the start
    before, age, gained = mixing, torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for sweep in range(sweeps + 1):
        cross = mixing.flatten(1) @ rows  # [R, K d]
        shared = cross @ mixing.flatten(1).T
        now = shared.diagonal().sum()
        size = now if size is None else size
        scale = torch.where(now > 0, size / now.clamp_min(1e-200), 1.0).sqrt()
        mixing, cross, shared = mixing * scale, cross * scale, shared * scale.square()
        cross = cross.unflatten(1, (keys, -1)).transpose(0, 1)  # [K, R, d]
        seen = self_turn(shared[None], inverse=True)
        against = cross_turn(cross[layer.key_of], inverse=True)
        maps = damped_solve(seen, against, damping * plane_power(shared))
        if sweep == sweeps:
            break
        gains = (layer.queries * (against.mT @ maps)).sum()
        age = torch.where(gains < gained, 0, age) + 1
        gained = gains
        moved = maps @ layer.queries  # [H, R, d]
        products = moved @ maps.mT
        weight = self_turn(products).sum(0)
        towards = cross_turn(moved).unflatten(0, (layer.gram.shape[0], -1)).sum(1)  # [K, R, d]
        ridge = damping * plane_power(products.sum(0))
        step = damped_solve(weight[None], towards, ridge[None]).transpose(0, 1)
        mixing, before = step + momentum(age) * (step - before), step
    return SharedRotaryKey(mixing, maps, inv_freq)
