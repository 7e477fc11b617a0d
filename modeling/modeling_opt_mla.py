"""OPT with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import OPTForCausalLM, OPTForQuestionAnswering, OPTForSequenceClassification, OPTModel
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoder, OPTDecoderLayer

from .configuration_opt_mla import OPTMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .opt_decoder import OPTParts  # noqa: TID251
from .plain_decoder import plain_forward  # noqa: TID251
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class OPTMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = OPTMLAConfig
    _can_record_outputs: Any = {"hidden_states": OPTDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class OPTMLADecoder(OPTParts, OPTMLAPreTrainedModel, OPTDecoder):
    """Embeddings, blocks and, in most, the last LayerNorm."""

    forward = answers_like(OPTDecoder.forward)(plain_forward)


class OPTMLAModel(OPTMLAPreTrainedModel, OPTModel):
    """The decoder, by another name."""

    forward = answers_like(OPTModel.forward)(OPTModel.forward)


class OPTMLAForCausalLM(OPTMLAPreTrainedModel, OPTForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(OPTForCausalLM.forward)(OPTForCausalLM.forward)


class OPTMLAForSequenceClassification(OPTMLAPreTrainedModel, OPTForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(OPTForSequenceClassification.forward)(OPTForSequenceClassification.forward)


class OPTMLAForQuestionAnswering(OPTMLAPreTrainedModel, OPTForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    forward = answers_like(OPTForQuestionAnswering.forward)(OPTForQuestionAnswering.forward)


OPTMLAPreTrainedModel.stands_for = {
    OPTAttention: StockLatentAttention,
    OPTDecoder: OPTMLADecoder,
    OPTModel: OPTMLAModel,
}

__all__ = ["OPTMLAForCausalLM", "OPTMLAForQuestionAnswering", "OPTMLAForSequenceClassification", "OPTMLAModel"]
