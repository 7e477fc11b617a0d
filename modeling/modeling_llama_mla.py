"""Llama and its relatives (Mistral, Qwen2, Gemma, Phi-3) with multi-head latent attention (MLA).

Everything but the attention is that of the original, down to the names of the tensors; the config says where the
relatives differ.

Letters in shapes:
    B  batch          S  new tokens
    D  hidden size
The rest is in latent_attention.py.
"""

from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm, GemmaTextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3MLP
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_llama_mla import LlamaMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_attention import LatentAttention, init_latent_attention  # noqa: TID251
from .transformers_api import CACHE_NAME, answers_like, takes_kv_cache  # noqa: TID251

make_causal_mask = takes_kv_cache(create_causal_mask)
make_sliding_window_mask = takes_kv_cache(create_sliding_window_causal_mask)
make_output = takes_kv_cache(BaseModelOutputWithPast)


def make_norm(config: LlamaMLAConfig) -> nn.Module:
    """Llama's RMSNorm, or Gemma's, which adds one to the gain and multiplies before it rounds."""
    norm = GemmaRMSNorm if config.norm_gain_offset else LlamaRMSNorm
    return norm(config.hidden_size, eps=config.rms_norm_eps)


def make_embedding(config: LlamaMLAConfig) -> nn.Embedding:
    """The token embedding, which multiplies its output for Gemma."""
    padding: Any = config.pad_token_id
    if config.embedding_multiplier == 1:
        return nn.Embedding(config.vocab_size, config.hidden_size, padding)
    scale = float(config.embedding_multiplier)
    return GemmaTextScaledWordEmbedding(config.vocab_size, config.hidden_size, padding, scale)


class LlamaMLADecoderLayer(GradientCheckpointingLayer):
    """One layer: attention and MLP, each behind its RMSNorm and added to what came in."""

    def __init__(self, config: LlamaMLAConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = LatentAttention(config, layer_idx, dropout=config.attention_dropout)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = Phi3MLP(config) if config.fused_gate_up else LlamaMLP(config)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    @answers_like(LlamaDecoderLayer.forward)
    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        kv_cache: Cache | None,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """[B, S, D], positions [B or 1, S] -> [B, S, D]."""
        arguments = kwargs | {CACHE_NAME: kv_cache, "attention_mask": attention_mask, "position_ids": position_ids}
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **arguments)
        hidden_states = hidden_states + self.resid_dropout(attended)
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        output: torch.Tensor = hidden_states + self.resid_dropout(transformed)
        return output


class LlamaMLAPreTrainedModel(LlamaPreTrainedModel):
    """What differs from Llama in what the classes below declare to transformers."""

    config_class = LlamaMLAConfig
    _no_split_modules = ["LlamaMLADecoderLayer"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs = {"hidden_states": LlamaMLADecoderLayer, "attentions": LatentAttention}  # noqa: RUF012

    def __init__(self, config: LlamaMLAConfig) -> None:
        # By name, past the __init__ of the Llama classes below: those would build a whole Llama, and draw its
        # weights, before ours could take its place. What is inherited from them is forward.
        LlamaPreTrainedModel.__init__(self, config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_latent_attention(module)
        if isinstance(module, GemmaRMSNorm):
            init.zeros_(module.weight)
        elif isinstance(module, GemmaTextScaledWordEmbedding):  # a buffer that is not in the checkpoint
            init.constant_(module.embed_scale, module.scalar_embed_scale)


class LlamaMLAModel(LlamaMLAPreTrainedModel):
    """Embedding, layers and the last RMSNorm."""

    def __init__(self, config: LlamaMLAConfig) -> None:
        super().__init__(config)
        self.embed_tokens = make_embedding(config)
        self.embed_dropout = nn.Dropout(config.embd_pdrop)
        self.layers = nn.ModuleList([LlamaMLADecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = make_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    @answers_like(LlamaModel.forward)
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        *,
        kv_cache: Cache | None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids [B, S] or inputs_embeds [B, S, D] -> last_hidden_state [B, S, D].

        The arguments are those of the installed LlamaModel, in its order; `kv_cache` is the cache by any of its names.
        What is left over in kwargs reaches the attention function.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and kv_cache is None:
            kv_cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if kv_cache is None else kv_cache.get_seq_length()
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        window = self.config.sliding_window
        make_mask = make_causal_mask if window is None else make_sliding_window_mask
        causal_mask = make_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            kv_cache=kv_cache,
            position_ids=position_ids,
        )
        arguments = kwargs | {CACHE_NAME: kv_cache, "attention_mask": causal_mask, "position_ids": position_ids}
        if window is not None:  # for attention functions that have no use for the mask
            arguments["sliding_window"] = window

        hidden_states = self.embed_dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **arguments)
        output: BaseModelOutputWithPast = make_output(
            last_hidden_state=self.norm(hidden_states), kv_cache=kv_cache if use_cache else None
        )
        return output


class LlamaMLAForCausalLM(LlamaMLAPreTrainedModel, LlamaForCausalLM):
    """The language model; `lm_head` shares the token embedding where tie_word_embeddings is on."""

    forward = answers_like(LlamaForCausalLM.forward)(LlamaForCausalLM.forward)

    def __init__(self, config: LlamaMLAConfig) -> None:
        super().__init__(config)
        self.model = LlamaMLAModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class LlamaMLAForSequenceClassification(GenericForSequenceClassification, LlamaMLAPreTrainedModel):
    """One label for a text, read at its last token."""

    forward = answers_like(GenericForSequenceClassification.forward)(GenericForSequenceClassification.forward)

    def __init__(self, config: LlamaMLAConfig) -> None:
        # Past GenericForSequenceClassification's, which asks AutoModel, and that does not know remote code.
        LlamaMLAPreTrainedModel.__init__(self, config)
        if config.num_labels is None:
            raise ValueError("num_labels must be set in the config of a classifier")
        self.num_labels = config.num_labels
        self.model = LlamaMLAModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()


__all__ = ["LlamaMLAForCausalLM", "LlamaMLAForSequenceClassification", "LlamaMLAModel", "LlamaMLAPreTrainedModel"]
