"""Experimental: a gate in front of the last norm mixes the residual states of all layers.

Let h_0 be the embedding, h_1 ... h_L what the L blocks give, and x = h_L / rms(h_L). The gate is one linear map with a
bias, z = W x + b, of L + 1 numbers, and what the last norm reads is

    h_L + sum_l (softmax(z)_l - 1 / (L + 1)) h_l

The weights of all states sum to one. W and b begin at zero, where softmax(z) is softmax(0), so that each difference is
exactly 0 and the logits are the original's, bit for bit. A softmax that gives h_L the weight one would begin there,
too, but only with infinite z, where nothing can be learned; here the gradient of z at the start is that of a uniform
softmax. The price: no weight is below -1 / (L + 1), and h_L is added in full before the gate moves anything.

The gate reads x and not h_L because single channels of a residual stream are larger than the others by orders of
magnitude from model to model: of unit size, one learning rate does. The cache is what it was.

Letters in shapes:
    B  batch          S  new tokens
    D  hidden size    L  blocks
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .replaced_parts import ReplacedParts  # noqa: TID251 - beside this file in a checkpoint, too


class LayerStates:
    """What the blocks of one forward pass have read so far: the embedding and the states after all but the last."""

    def __init__(self) -> None:
        self.read: list[torch.Tensor] = []

    def keep(self, number: int, states: torch.Tensor) -> None:
        """Add what block `number` reads, [B, S, D]; the first block begins a new pass."""
        if number == 0:
            self.read.clear()
        self.read.append(states)


class LayerGate(nn.Linear):
    """[B, S, D] -> a number for each state, [B, S, L + 1]; zero until it is trained."""


class ReadingBlock:
    """What a family's block has in front of the stock class that it is: it keeps what it reads.

    That is done where the block is called and not in its forward, which is run again where activations are computed
    again.
    """

    layer_states: LayerStates
    layer_number: int

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, S, D] -> [B, S, D]."""
        self.layer_states.keep(self.layer_number, hidden_states)
        return super().__call__(hidden_states, *args, **kwargs)  # type: ignore[misc]  # of the stock class


class MixingNorm:
    """What a family's last norm has in front of the stock class that it is: the gate, and what it mixes.

    Made from (hidden size, eps, number of blocks, what the blocks have read).
    """

    def __init__(self, hidden_size: int, eps: float, layers: int, states: LayerStates) -> None:
        super().__init__(hidden_size, eps=eps)  # type: ignore[call-arg]  # of the stock class
        self.layer_gate = LayerGate(hidden_size, layers + 1)
        self.layer_states = states

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D], after the last block -> [B, S, D]."""
        normed: torch.Tensor = super().forward(self.mixed(hidden_states))  # type: ignore[misc]
        return normed

    def mixed(self, last: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]: with a share of every state."""
        states = [*self.layer_states.read, last]
        self.layer_states.read.clear()
        if len(states) != self.layer_gate.out_features:
            raise RuntimeError(
                f"the gate mixes {self.layer_gate.out_features} states and {len(states)} came: blocks were left out, "
                "or the last norm was called alone"
            )
        scores = self.layer_gate(F.rms_norm(last, last.shape[-1:], eps=1e-6)).float()
        shares = (scores.softmax(-1) - torch.zeros_like(scores).softmax(-1)).to(last.dtype)
        found = last
        for number, state in enumerate(states):
            found = found + shares[..., number : number + 1] * state.to(last.device)
        return found


class MixtureModel(ReplacedParts):
    """What a family's models have in front of the stock class that each of them is.

    Attributes:
        stands_for: as of `ReplacedParts`, the base model alone.
        block_class, norm_class: the family's own, of a `ReadingBlock` and of a `MixingNorm`.
    """

    block_class: Any
    norm_class: Any
    # engines that run our class cut it into parts of their own, and the states of all blocks meet at its end
    _supports_attention_backend = False

    def _replace(self, parent: Any) -> None:
        super()._replace(parent)
        if parent is not self or not hasattr(self, "layers"):
            return
        states, config = LayerStates(), self.config
        blocks = [self.block_class(config, number) for number in range(config.num_hidden_layers)]
        for number, block in enumerate(blocks):
            block.layer_states, block.layer_number = states, number
        self.layers = nn.ModuleList(blocks)
        self.norm = self.norm_class(config.hidden_size, config.rms_norm_eps, config.num_hidden_layers, states)

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        if isinstance(module, LayerGate):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)  # type: ignore[misc]  # of the stock class


__all__ = ["LayerGate", "LayerStates", "MixingNorm", "MixtureModel", "ReadingBlock"]
