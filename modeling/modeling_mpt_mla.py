"""MPT with multi-head latent attention (MLA): the backbone is in mpt_decoder.py."""

from typing import Any

from transformers import MptForCausalLM, MptModel
from transformers.models.mpt.modeling_mpt import MptBlock

from .configuration_mpt_mla import MptMLAConfig  # noqa: TID251 - beside this file in a checkpoint, too
from .latent_attention import LatentAttention  # noqa: TID251
from .mpt_decoder import MptBackbone, MptBackboneBlock, MptBackbonePreTrainedModel  # noqa: TID251
from .plain_decoder import plain_block_forward, plain_forward  # noqa: TID251
from .plain_heads import LanguageHead  # noqa: TID251
from .plain_latent import LatentInitialisation  # noqa: TID251
from .transformers_api import answers_like  # noqa: TID251


class MptMLAAttention(LatentAttention):
    """Latent attention, whose scores fall with the distance."""

    def __init__(self, config: MptMLAConfig, layer_idx: int) -> None:
        own: Any = config.attn_config
        super().__init__(config, layer_idx, dropout=float(own.attn_pdrop))


class MptMLABlock(MptBackboneBlock):
    """One layer with this attention."""

    forward = answers_like(MptBlock.forward)(plain_block_forward)
    attention_class = MptMLAAttention


class MptMLAPreTrainedModel(LatentInitialisation, MptBackbonePreTrainedModel):
    """What the classes below declare to transformers."""

    config_class: Any = MptMLAConfig
    _no_split_modules: Any = ["MptMLABlock"]  # noqa: RUF012 - transformers' own declaration
    _can_record_outputs: Any = {"hidden_states": MptMLABlock, "attentions": MptMLAAttention}  # noqa: RUF012


class MptMLAModel(MptMLAPreTrainedModel, MptBackbone, MptModel):
    """Embeddings, blocks and the last LayerNorm."""

    block_class = MptMLABlock
    forward = answers_like(MptModel.forward)(plain_forward)


MptMLAPreTrainedModel.base_class = MptMLAModel


class MptMLAForCausalLM(LanguageHead, MptMLAPreTrainedModel, MptForCausalLM):
    """The language model; `lm_head` shares the token embedding unless tie_word_embeddings is off."""

    forward = answers_like(MptForCausalLM.forward)(MptForCausalLM.forward)


__all__ = ["MptMLAForCausalLM", "MptMLAModel"]
