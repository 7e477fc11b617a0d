"""A family that nobody has: ALiBi, q, k and v fused group by group, and norms behind instead of before.

Its class is known to transformers wherever this module has been imported.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm


class ToyConfig(LlamaConfig):
    """Llama's numbers."""

    model_type = "toy"


class ToyAttention(nn.Module):
    """Rows of `query_key_value`: group by group its queries, its key, its value."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        rows = (self.heads + 2 * self.groups) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows)
        self.dense = nn.Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """[B, S, D] -> [B, S, D]."""
        fused = self.query_key_value(hidden_states).unflatten(-1, (self.groups, -1, self.head_dim)).transpose(1, 2)
        query, key, value = fused[..., :-2, :], fused[..., -2, :], fused[..., -1, :]  # [B, G, S, per, d], [B, G, S, d]
        query = query.permute(0, 1, 3, 2, 4).flatten(1, 2)
        cache = kwargs.get("cache") if kwargs.get("cache") is not None else kwargs.get("past_key_values")
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        per = self.heads // self.groups
        key, value = key.repeat_interleave(per, 1), value.repeat_interleave(per, 1)
        tokens, keys = query.shape[2], key.shape[2]
        slopes = torch.tensor([2 ** (-8 * (n + 1) / self.heads) for n in range(self.heads)])
        ahead = torch.arange(keys) - torch.arange(keys - tokens, keys)[:, None]
        scores = query @ key.mT * self.scaling + (slopes[:, None, None] * ahead).to(query.dtype)
        if attention_mask is not None:
            scores = scores + attention_mask[..., :keys]
        mixed = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
        return self.dense(mixed.transpose(1, 2).flatten(2)), None


class ToyLayer(LlamaDecoderLayer):
    """Norms stand behind the sums."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        nn.Module.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = ToyAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.after_attention = LlamaRMSNorm(config.hidden_size)
        self.after_mlp = LlamaRMSNorm(config.hidden_size)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        kwargs.pop("position_embeddings", None)
        hidden_states = self.after_attention(hidden_states + self.self_attn(hidden_states, **kwargs)[0])
        return self.after_mlp(hidden_states + self.mlp(hidden_states))


class Nowhere(nn.Module):
    """In the place of the rotary module."""

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Nothing turns."""


class ToyModel(LlamaModel):
    """Llama's model around these layers."""

    config_class = ToyConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False
    _no_split_modules = ("ToyLayer",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(ToyLayer(config, number) for number in range(config.num_hidden_layers))
        self.rotary_emb = Nowhere()
        self.post_init()


class ToyForCausalLM(LlamaForCausalLM):
    """With a head."""

    config_class = ToyConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = ToyModel(config)
        self.post_init()


assert math.log2(8) == 3  # the slopes above are the paper's for powers of two
AutoConfig.register("toy", ToyConfig, exist_ok=True)
AutoModel.register(ToyConfig, ToyModel, exist_ok=True)
AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM, exist_ok=True)
