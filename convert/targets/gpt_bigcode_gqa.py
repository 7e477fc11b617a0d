"""GPTBigCode with G K/V heads: our modeling/modeling_gpt_bigcode_gqa.py; its own class has one, or one a head."""

from dataclasses import replace

from convert_attn.convert.targets.base import Blueprint, Config
from convert_attn.convert.targets.shared_heads import LABELLED, shared_heads

_PLAIN = shared_heads("gpt_bigcode", "GPTBigCode", LABELLED)


def _configure(blueprint: Blueprint) -> Config:
    """GPTBigCode's own word for one K/V head says the same."""
    config = _PLAIN.configure(blueprint)
    return config | {"multi_query": config["num_key_value_heads"] == 1}


TARGET = replace(_PLAIN, configure=_configure)
