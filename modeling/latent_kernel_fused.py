"""Latent attention by SDPA's fused kernel: one new token in fp32 on a CPU. See latent_kernel.py."""

import torch
from torch.nn import functional as F

from .latent_kernel import Kernel  # noqa: TID251 - beside this file, too


def _applies(query: torch.Tensor, training: bool, weights: bool) -> bool:
    """Whether it is faster; measured by eval/benchmarks/decode.py of convert-attn.

    For one new token on the CPU it passes over the cache once, not twice. In bf16 its products are slower than
    plain ones, which are bound by arithmetic. It works on up to 32 rows of a sequence in one thread; where that
    leaves threads idle, plain products have the better of it. On GPUs it has no fast kernel for sizes like r + R.
    """
    batch, heads, tokens, _ = query.shape
    if weights or training or torch.compiler.is_compiling() or query.device.type != "cpu":
        return False
    jobs = batch * -(-heads // 32)
    return tokens == 1 and query.dtype == torch.float32 and jobs >= torch.get_num_threads()


def _run(
    query: torch.Tensor,
    entries: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float,
    causal: bool,
    dropout: float,
) -> tuple[torch.Tensor, None]:
    """All heads are rows of one query: each entry is read once."""
    rows = query.transpose(1, 2)  # [B, 1, H, r + R]
    if mask is not None and mask.shape[1] > 1:  # one for each head: [B, H, 1, T] -> [B, 1, H, T]
        mask = mask.transpose(1, 2)
    mixed = F.scaled_dot_product_attention(rows, entries, entries, attn_mask=mask, scale=scaling)
    return mixed.transpose(1, 2), None


FUSED = Kernel(_applies, _run)

__all__ = ["FUSED"]
