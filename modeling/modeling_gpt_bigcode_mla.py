"""GPTBigCode with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import GPTBigCodeForCausalLM, GPTBigCodeModel
from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeAttention, GPTBigCodeBlock

from .configuration_gpt_bigcode_mla import GPTBigCodeMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .cross_attention import refuse_cross_attention  # noqa: TID251
from .latent_attention import LatentAttention  # noqa: TID251
from .stock_latent import StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTBigCodeMLAAttention(LatentAttention):
    """Latent attention, with GPTBigCode's names for dropouts."""

    def __init__(self, config: GPTBigCodeMLAConfig, layer_idx: int) -> None:
        refuse_cross_attention(config)
        super().__init__(config, layer_idx, dropout=float(config.attn_pdrop))
        self.output_dropout = float(config.resid_pdrop)


class GPTBigCodeMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = GPTBigCodeMLAConfig
    _can_record_outputs: Any = {"hidden_states": GPTBigCodeBlock, "attentions": GPTBigCodeMLAAttention}  # noqa: RUF012


class GPTBigCodeMLAModel(GPTBigCodeMLAPreTrainedModel, GPTBigCodeModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(GPTBigCodeModel.forward)(GPTBigCodeModel.forward)


class GPTBigCodeMLAForCausalLM(GPTBigCodeMLAPreTrainedModel, GPTBigCodeForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(GPTBigCodeForCausalLM.forward)(GPTBigCodeForCausalLM.forward)


GPTBigCodeMLAPreTrainedModel.stands_for = {
    GPTBigCodeAttention: GPTBigCodeMLAAttention,
    GPTBigCodeModel: GPTBigCodeMLAModel,
}

__all__ = ["GPTBigCodeMLAForCausalLM", "GPTBigCodeMLAModel"]
