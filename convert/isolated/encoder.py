"""What an encoder does, found by running it: it has no cache, and each text of a batch is for itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .behaviour import MisbehaviourError, check_equal, forward


@torch.inference_mode()
def check_padding(model: Any, ids: Tensor) -> float:
    """Check that an encoder gives for a padded batch what each sequence gives alone.

    Args:
        model: in evaluation mode; an encoder's base model.
        ids: [1, S].

    Returns:
        the largest difference seen, in standard deviations of the output.

    Raises:
        MisbehaviourError: it does not, or its numbers are not finite.
    """
    length = ids.shape[1]
    kept = length - length * 3 // 8
    batch, mask = ids.repeat(2, 1), torch.ones(2, length, dtype=ids.dtype, device=ids.device)
    batch[1, kept:], mask[1, kept:] = getattr(model.config, "pad_token_id", None) or 0, 0
    whole, short = forward(model, ids).values, forward(model, ids[:, :kept]).values
    if not torch.isfinite(whole).all():
        raise MisbehaviourError(f"gives numbers that are not finite in {str(whole.dtype).removeprefix('torch.')}")
    together = forward(model, batch, mask=mask).values
    what = "does not give for a padded batch what each sequence gives alone"
    return max(check_equal(together[:1], whole, what), check_equal(together[1:, :kept], short, what))
