"""What GPT-J and CodeGen with latent attention share; the rest of both is in parallel_rotary.py."""

from typing import Any

import torch

from .latent_attention import LatentAttention  # noqa: TID251 - beside this file, too
from .parallel_rotary import ParallelBlock, ParallelModel  # noqa: TID251
from .plain_decoder import PlainPreTrainedModel  # noqa: TID251
from .plain_latent import LatentInitialisation  # noqa: TID251


class ParallelLatentAttention(LatentAttention):
    """Latent attention; part of what it gives is dropped in training."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx, dropout=config.attn_pdrop)
        self.output_dropout = config.resid_pdrop


class ParallelLatentBlock(ParallelBlock):
    """Latent attention and MLP side by side, behind one LayerNorm."""

    attention_class = ParallelLatentAttention


class ParallelLatentModel(ParallelModel):
    """Embeddings, blocks and the last LayerNorm."""

    def tables(self, position_ids: torch.Tensor, dtype: torch.dtype) -> Any:
        """Give the positions [B, S] themselves: the rotary key has frequencies of its own."""
        return position_ids


class ParallelLatentPreTrainedModel(LatentInitialisation, PlainPreTrainedModel):
    """What models of both have in front of the stock class."""

    base_model_prefix = "transformer"


__all__ = ["ParallelLatentAttention", "ParallelLatentBlock", "ParallelLatentModel", "ParallelLatentPreTrainedModel"]
