"""GPT-2 around an attention of another kind: everything else is GPT-2's, down to the names of the tensors.

Letters in shapes:
    B  batch          S  new tokens
    D  hidden size
"""

from typing import Any

import torch
from torch import nn
from transformers import GPT2Model, GPT2PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Block
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .cross_attention import refuse_cross_attention  # noqa: TID251 - beside this file in a checkpoint, too
from .transformers_api import CACHE_NAME, answers_like, takes_kv_cache  # noqa: TID251

make_causal_mask = takes_kv_cache(create_causal_mask)
make_output = takes_kv_cache(BaseModelOutputWithPastAndCrossAttentions)


class BackboneBlock(GradientCheckpointingLayer):
    """One layer: attention and MLP, each behind its LayerNorm and added to what came in."""

    def __init__(self, config: Any, attention: nn.Module, output: nn.Module) -> None:
        """attention: returns its result [B, S, D] first; output: its last projection."""
        super().__init__()
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = attention
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(inner, config)
        # GPT-2 draws these smaller, the more layers there are. They are marked for `_init_weights`, which in code
        # outside transformers does not get to see the modules around them: those have no weights of their own.
        projections: list[Any] = [output, self.mlp.c_proj]
        for projection in projections:
            projection.adds_to_residual = True

    @answers_like(GPT2Block.forward)
    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        kv_cache: Cache | None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]."""
        arguments = kwargs | {CACHE_NAME: kv_cache, "attention_mask": attention_mask}
        attended, _ = self.attn(self.ln_1(hidden_states), **arguments)
        hidden_states = self.resid_dropout(attended) + hidden_states
        output: torch.Tensor = hidden_states + self.mlp(self.ln_2(hidden_states))
        return output


class BackbonePreTrainedModel(GPT2PreTrainedModel):
    """What differs from GPT-2 in what the classes of a family declare to transformers."""

    _supports_flex_attn = True
    # Masks in old GPT-2 checkpoints. GPT-2's own "attn.bias" is also found within "c_attn.bias", which vLLM then drops.
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.(masked_)?bias$"]  # noqa: RUF012 - declared in transformers

    def __init__(self, config: Any) -> None:
        # By name, past the __init__ of the GPT-2 classes beside this one: those would build a whole GPT-2, and draw
        # its weights, before ours could take its place. What is inherited from them is forward.
        GPT2PreTrainedModel.__init__(self, config)
        refuse_cross_attention(config)

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if getattr(module, "adds_to_residual", False):
            std = self.config.initializer_range / (2 * self.config.n_layer) ** 0.5
            init.normal_(module.weight, mean=0.0, std=std)


class BackboneModel(BackbonePreTrainedModel, GPT2Model):
    """Embeddings, blocks and the last LayerNorm."""

    block_class: Any = None  # (config, number of the layer) -> BackboneBlock

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([self.block_class(config, i) for i in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @answers_like(GPT2Model.forward)
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        *,
        kv_cache: Cache | None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """input_ids [B, S] or inputs_embeds [B, S, D] -> last_hidden_state [B, S, D].

        The arguments are those of the installed GPT2Model, in its order; `kv_cache` is the cache by any of its names.
        What is left over in kwargs reaches the attention function.
        """
        if encoder_hidden_states is not None or encoder_attention_mask is not None:
            raise ValueError(f"{self.config.model_type} has no cross attention: encoder_hidden_states cannot be used")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
            inputs_embeds = self.wte(input_ids)
        if use_cache and kv_cache is None:
            kv_cache = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = _next_positions(inputs_embeds, kv_cache)
        causal_mask = make_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            kv_cache=kv_cache,
            position_ids=position_ids,
        )

        hidden_states = inputs_embeds + self.wpe(position_ids)
        if token_type_ids is not None:  # GPT-2 reads them from the token embedding
            hidden_states = hidden_states + self.wte(token_type_ids)
        hidden_states = self.drop(hidden_states)
        arguments = kwargs | {CACHE_NAME: kv_cache, "attention_mask": causal_mask, "position_ids": position_ids}
        for block in self.h:
            hidden_states = block(hidden_states, **arguments)
        output: BaseModelOutputWithPastAndCrossAttentions = make_output(
            last_hidden_state=self.ln_f(hidden_states), kv_cache=kv_cache if use_cache else None
        )
        return output


def _next_positions(inputs_embeds: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """[1, S]: the positions that follow what the cache holds."""
    seen = 0 if cache is None else cache.get_seq_length()
    return (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)


def count_labels(config: Any) -> int:
    """num_labels, which a classifier must have."""
    if config.num_labels is None:
        raise ValueError("num_labels must be set in the config of a classifier")
    labels: int = config.num_labels
    return labels


__all__ = ["BackboneBlock", "BackboneModel", "BackbonePreTrainedModel", "count_labels"]
