"""BioGPT with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import BioGptForCausalLM, BioGptModel
from transformers.models.biogpt.modeling_biogpt import BioGptAttention, BioGptDecoderLayer

from .biogpt_decoder import BioGptParts  # noqa: TID251 - beside this file in a checkpoint, too
from .configuration_biogpt_mla import BioGptMLAConfig  # noqa: TID251
from .latent_attention import LatentAttention  # noqa: TID251
from .plain_decoder import plain_forward  # noqa: TID251
from .stock_latent import StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class BioGptMLAAttention(LatentAttention):
    """Latent attention, with BioGPT's name for a dropout."""

    def __init__(self, config: BioGptMLAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, dropout=float(config.attention_probs_dropout_prob))


class BioGptMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = BioGptMLAConfig
    _supports_attention_backend = True
    _can_record_outputs: Any = {"hidden_states": BioGptDecoderLayer, "attentions": BioGptMLAAttention}  # noqa: RUF012


class BioGptMLAModel(BioGptParts, BioGptMLAPreTrainedModel, BioGptModel):
    """Embeddings, blocks and the last LayerNorm."""

    forward = answers_like(BioGptModel.forward)(plain_forward)


class BioGptMLAForCausalLM(BioGptMLAPreTrainedModel, BioGptForCausalLM):
    """The language model; `output_projection` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(BioGptForCausalLM.forward)(BioGptForCausalLM.forward)


BioGptMLAPreTrainedModel.stands_for = {BioGptAttention: BioGptMLAAttention, BioGptModel: BioGptMLAModel}

__all__ = ["BioGptMLAForCausalLM", "BioGptMLAModel"]
