"""Ways to mix the entries of a latent cache for absorbed queries: the first that applies is run."""

import torch

from .latent_kernel import Kernel, Mixed, Shaping  # noqa: TID251 - beside this file, too
from .latent_kernel_fused import FUSED  # noqa: TID251
from .latent_kernel_plain import PLAIN, run_plain  # noqa: TID251
from .latent_kernel_triton import TRITON  # noqa: TID251

KERNELS: tuple[Kernel, ...] = (TRITON, FUSED, PLAIN)


def mix(
    query: torch.Tensor,
    entries: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    causal: bool,
    dropout: float,
    training: bool,
    weights: bool,
    shaping: Shaping | None = None,
) -> Mixed:
    """Run the first kernel that applies, which the last one always does; arguments as in latent_kernel.py."""
    if shaping is not None:
        return run_plain(query, entries, mask=mask, scaling=scaling, causal=causal, dropout=dropout, shaping=shaping)
    kernel = next(kernel for kernel in KERNELS if kernel.applies(query, training, weights))
    return kernel.run(query, entries, mask=mask, scaling=scaling, causal=causal, dropout=dropout)


__all__ = ["KERNELS", "mix"]
