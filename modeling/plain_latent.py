"""What families whose blocks are called in another way (plain_decoder.py) share where their attention is latent."""

from typing import Any

import torch

from .latent_attention import init_latent_attention  # noqa: TID251 - beside this file in a checkpoint, too


class LatentInitialisation:
    """What such models have in front of all else: the stock class draws weights, and buffers of ours are filled."""

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)  # type: ignore[misc]  # of the stock class
        init_latent_attention(module)


__all__ = ["LatentInitialisation"]
