"""LoRA through peft: low-rank changes of the attention's projections, merged into them at the end."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from convert_attn.convert.errors import UsageError
from convert_attn.convert.heal.state.pair import learns


def adapt(model: nn.Module, rank: int) -> Any:
    """Give the model with an adapter on every linear layer of its attention; nothing else is trainable.

    Raises:
        UsageError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UsageError("--lora-rank needs peft: pip install 'convert-attn[lora]'") from None
    linear = (nn.Linear, Conv1D)
    chosen = [
        name
        for name, part in model.named_modules()
        if isinstance(part, linear) and learns(f"{name}.weight", "attention")
    ]
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in chosen)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=chosen, fan_in_fan_out=transposed)
    return get_peft_model(model, config)


def merged(adapted: Any) -> dict[str, Tensor]:
    """Give the projections with their changes added, by the names of the model without adapters."""
    model: nn.Module = adapted.merge_and_unload()
    return {name: parameter for name, parameter in model.named_parameters() if learns(name, "attention")}
