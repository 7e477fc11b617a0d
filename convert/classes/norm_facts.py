"""What a norm module computes, found by running it: eps, whether it takes the mean off, what it adds to its weight."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.weights.head_norm import HeadNorm

_SMALL = 1e-3  # size of an input beside which eps shows
_CLOSE = 1e-4
_TOKENS = 4


def norm_facts(module: nn.Module, name: str) -> HeadNorm:
    """Run a norm on a few random numbers and say what it computes.

    Args:
        module: with a weight [d] or [n, d], on any device; it is not changed.
        name: for messages.

    Raises:
        ConvertAttnError: it is neither an RMSNorm nor a LayerNorm with a weight.
    """
    probe = _Probe(module)
    x = torch.randn(_TOKENS, *probe.shape, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(-1, keepdim=True)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    none, one = probe(x, torch.zeros(probe.shape)), probe(x, torch.ones(probe.shape))
    normed = one - none
    small = probe(x * _SMALL, torch.ones(probe.shape)) - probe(x * _SMALL, torch.zeros(probe.shape))
    moved = probe(x + 1, torch.ones(probe.shape)) - probe(x + 1, torch.zeros(probe.shape))
    eps = _SMALL**2 * float((1 / small.square().mean(-1).clamp_min(1e-30)).mean() - 1)
    found = HeadNorm(
        eps=float(f"{max(eps, 0.0):.3g}"),
        centred=torch.allclose(moved, normed, atol=_CLOSE),
        offset=round(float((none * normed).mean() / normed.square().mean().clamp_min(1e-30)), 3),
        biased=probe.biased,
    )
    gain = torch.rand(probe.shape, generator=torch.Generator().manual_seed(1))
    for given in (x, x + 0.5, x * _SMALL):
        heads = given.reshape(_TOKENS, -1, probe.shape[-1]).transpose(0, 1)[None]
        wanted = found(heads, gain.reshape(-1, probe.shape[-1]))[0].transpose(0, 1).reshape(given.shape)
        if not torch.allclose(probe(given, gain), wanted, atol=_CLOSE, rtol=_CLOSE) or not probe.adds_its_bias(given):
            raise ConvertAttnError(
                f"'{name}' in the attention is a {type(module).__name__}, which computes neither an RMSNorm nor a "
                "LayerNorm with a weight, as this tool knows them; it cannot be converted"
            )
    return found


class _Probe:
    """A copy of a norm with a weight of one's choice."""

    def __init__(self, module: nn.Module) -> None:
        self._module = deepcopy(module).to_empty(device="cpu").float()
        self.shape = tuple(self._module.get_parameter("weight").shape)
        self.biased = getattr(self._module, "bias", None) is not None
        if self.biased:
            nn.init.zeros_(self._module.get_parameter("bias"))

    @torch.no_grad()
    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        self._module.get_parameter("weight").data.copy_(weight)
        found: Tensor = self._module(x)
        return found

    @torch.no_grad()
    def adds_its_bias(self, x: Tensor) -> bool:
        """Tell whether its bias, if any, is added to all that it computes besides."""
        if not self.biased:
            return True
        bias = self._module.get_parameter("bias")
        shift = torch.rand(self.shape, generator=torch.Generator().manual_seed(2))
        without = self._module(x)
        bias.copy_(shift)
        found = bool(torch.allclose(self._module(x), without + shift, atol=_CLOSE))
        bias.zero_()
        return found
