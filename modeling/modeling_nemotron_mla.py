"""Nemotron with multi-head latent attention (MLA); all but the attention is transformers' own."""

from typing import Any

from transformers import NemotronForCausalLM, NemotronModel
from transformers.models.nemotron.modeling_nemotron import NemotronAttention, NemotronDecoderLayer

from .configuration_nemotron_mla import NemotronMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .stock_latent import StockLatentAttention, StockLatentModel  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class NemotronMLAPreTrainedModel(StockLatentModel):
    """What the classes below declare to transformers in another way than the stock ones."""

    _supports_attention_backend = False  # the stock blocks drop what an engine gives
    config_class: Any = NemotronMLAConfig
    _can_record_outputs: Any = {"hidden_states": NemotronDecoderLayer, "attentions": StockLatentAttention}  # noqa: RUF012


class NemotronMLAModel(NemotronMLAPreTrainedModel, NemotronModel):
    """Embeddings, blocks and the last norm."""

    forward = answers_like(NemotronModel.forward)(NemotronModel.forward)


class NemotronMLAForCausalLM(NemotronMLAPreTrainedModel, NemotronForCausalLM):
    """The language model."""

    forward = answers_like(NemotronForCausalLM.forward)(NemotronForCausalLM.forward)


NemotronMLAPreTrainedModel.stands_for = {NemotronAttention: StockLatentAttention, NemotronModel: NemotronMLAModel}

__all__ = ["NemotronMLAForCausalLM", "NemotronMLAModel"]
