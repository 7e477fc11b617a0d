"""The projection that ends a block's MLP, solved anew for what converted attention leaves behind (`--refit mlp`).

It reads what the MLP makes of a stream that is a little off, and it can make good what the attention in front of it
could not, and some of what earlier layers have lost. The price is that tensors outside attention change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from convert_attn.convert.maths.output_ridge import Regression, solve
from convert_attn.convert.streaming.stream import Block

Attend = Callable[[Tensor], Tensor]
"""The block's input after the norm [B, T, D] -> the converted attention's output [B, T, D]."""
States = tuple[Tensor, ...]
"""The conversion's stream in front of the block, the original's after its attention and after the block: [B, T, D]."""


@dataclass(frozen=True)
class MlpOutput:
    """weight [D, F], and bias [D] where the class has one."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module) -> MlpOutput:
        """Read a linear layer, of either layout."""
        weight, bias = module.get_parameter("weight").data, getattr(module, "bias", None)
        return cls(weight.T if isinstance(module, Conv1D) else weight, None if bias is None else bias.data)

    def rounded(self, dtype: torch.dtype) -> MlpOutput:
        """As it is when it has been stored in a dtype, in its own."""
        own, bias = self.weight.dtype, self.bias
        return MlpOutput(self.weight.to(dtype).to(own), None if bias is None else bias.to(dtype).to(own))

    def put(self, module: nn.Module) -> None:
        """Write it into a linear layer, of either layout."""
        weight = self.weight.T if isinstance(module, Conv1D) else self.weight
        module.get_parameter("weight").data.copy_(weight)
        if self.bias is not None:
            module.get_parameter("bias").data.copy_(self.bias)

    def tensors(self, name: str, transposed: bool) -> dict[str, Tensor]:
        """By the names below the block, as a class with such a layout stores them."""
        found = {f"{name}.weight": self.weight.T if transposed else self.weight}
        return found if self.bias is None else found | {f"{name}.bias": self.bias}


def solve_mlp(block: Block, attend: Attend, fit: Iterable[States], selection: Iterable[States]) -> MlpOutput:
    """Solve the projection that ends a block's MLP by ridge regression.

    As for attention's output projection (`output_ridge`), what this MLP lacks and what the stream brings along are
    regressed apart, each with the ridge that does best on the selection text.

    Args:
        attend: the converted attention.
        fit, selection: batches of states.
    """
    assert block.mlp_output is not None
    before = MlpOutput.of(block.mlp_output)
    sums = (Regression(), Regression())
    for regression, batches in zip(sums, (fit, selection), strict=True):
        for features, own, inherited, stream in _misses(block, attend, batches):
            regression.add(features, own, inherited, stream, before.bias is not None)
    size = before.weight.shape[1]
    change = solve(*sums, size).to(before.weight.dtype)
    bias = None if before.bias is None else before.bias + change[size]
    return MlpOutput(before.weight + change[:size].T, bias)


def _misses(block: Block, attend: Attend, batches: Iterable[States]) -> Iterator[tuple[Tensor, ...]]:
    """What the projection reads [n, F], what the MLP and the stream before it lack, the original's stream [n, D]."""
    seen: list[Tensor] = []
    assert block.mlp_output is not None
    hook = block.mlp_output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        for read, attended, after in batches:
            outputs: list[Tensor] = []

            def remembered(x: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
                outputs.append(attend(x))
                return outputs[0]

            out = block.run(read, remembered)
            between = read + outputs[0]
            parts = (seen.pop(), (after - attended) - (out - between), attended - between, after)
            yield tuple(part.flatten(0, 1) for part in parts)
    finally:
        hook.remove()
