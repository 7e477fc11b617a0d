"""GPT-NeoX (Pythia) with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import (
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
)
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXLayer

from .configuration_gpt_neox_mla import GPTNeoXMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel, keep_stored_names  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class GPTNeoXMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    config_class: Any = GPTNeoXMLAConfig
    _can_record_outputs: Any = {"hidden_states": GPTNeoXLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class GPTNeoXMLAModel(GPTNeoXMLAPreTrainedModel, GPTNeoXModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(GPTNeoXModel.forward)(GPTNeoXModel.forward)


class GPTNeoXMLAForCausalLM(GPTNeoXMLAPreTrainedModel, GPTNeoXForCausalLM):
    """The language model."""

    forward = answers_like(GPTNeoXForCausalLM.forward)(GPTNeoXForCausalLM.forward)


class GPTNeoXMLAForSequenceClassification(GPTNeoXMLAPreTrainedModel, GPTNeoXForSequenceClassification):
    """One label for a text, read at its last token."""

    forward = answers_like(GPTNeoXForSequenceClassification.forward)(GPTNeoXForSequenceClassification.forward)


class GPTNeoXMLAForTokenClassification(GPTNeoXMLAPreTrainedModel, GPTNeoXForTokenClassification):
    """One label for each token."""

    forward = answers_like(GPTNeoXForTokenClassification.forward)(GPTNeoXForTokenClassification.forward)


class GPTNeoXMLAForQuestionAnswering(GPTNeoXMLAPreTrainedModel, GPTNeoXForQuestionAnswering):
    """Where in the text an answer starts and ends."""

    forward = answers_like(GPTNeoXForQuestionAnswering.forward)(GPTNeoXForQuestionAnswering.forward)


GPTNeoXMLAPreTrainedModel.stands_for = {GPTNeoXAttention: StockLatentAttention, GPTNeoXModel: GPTNeoXMLAModel}
for _own in ("GPTNeoXMLAForCausalLM", "GPTNeoXMLAModel"):  # engines ask the base model what tensors are called
    keep_stored_names(_own, "GPTNeoXForCausalLM")

__all__ = [
    "GPTNeoXMLAForCausalLM",
    "GPTNeoXMLAForQuestionAnswering",
    "GPTNeoXMLAForSequenceClassification",
    "GPTNeoXMLAForTokenClassification",
    "GPTNeoXMLAModel",
]
