"""Attention over shared heads for classes of transformers: `attn_implementation="convert_attn_packed"`.

This file does not travel with checkpoints. It imports neither torch nor transformers: both are there when a model
calls what is registered here.
"""

import sys
from types import ModuleType
from typing import Any

from convert_attn.modeling.attention_names import PACKED
from convert_attn.modeling.lazy_registration import after_import

__all__ = ["offer_when_loaded"]


def offer_when_loaded() -> None:
    """Make the function and its mask known as soon as transformers' tables of them are imported."""
    after_import("transformers.modeling_utils", _offer_function)
    after_import("transformers.masking_utils", _offer_mask)


def _offer_function(modeling_utils: ModuleType) -> None:
    modeling_utils.ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_function)


def _offer_mask(masking_utils: ModuleType) -> None:
    masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, packed_mask)


def packed_function(*args: Any, **kwargs: Any) -> Any:
    """Call `packed_attention` of grouped_attention.py, imported by now or not."""
    from convert_attn.modeling.grouped_attention import packed_attention  # needs torch

    return packed_attention(*args, **kwargs)


def packed_mask(*args: Any, **kwargs: Any) -> Any:
    """Make the mask that transformers makes for SDPA: boolean, and none where causal attention needs none.

    Raises: ValueError for a class of transformers whose attention cannot be another, which would add that mask.
    """
    from transformers.masking_utils import sdpa_mask  # may not be imported by us

    _refuse_others(kwargs.get("config"))
    return sdpa_mask(*args, **kwargs)


def _refuse_others(config: Any) -> None:
    """Look into the module of the config's model for transformers' table of attention functions.

    A config without such a module is of another's classes, which have the table (sarvam_moe's are glm4_moe's).
    """
    home: str = type(config).__module__
    module = sys.modules.get(home.replace("configuration_", "modeling_"))
    ours = not home.startswith("transformers.models.")
    if not ours and module is not None and not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        raise ValueError(
            f"{config.model_type} computes its attention by itself in transformers: attn_implementation={PACKED!r} "
            "cannot replace it, leave it out"
        )
