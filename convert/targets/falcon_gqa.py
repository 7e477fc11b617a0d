"""Falcon with G K/V heads: our modeling/modeling_falcon_gqa.py, since the class of transformers caches all heads."""

from dataclasses import replace

from convert_attn.convert.targets.base import Blueprint, Config
from convert_attn.convert.targets.shared_heads import LABELLED, shared_heads

_PLAIN = shared_heads("falcon", "Falcon", LABELLED)


def _configure(blueprint: Blueprint) -> Config:
    """Falcon's own name for the number of K/V heads says the same."""
    config = _PLAIN.configure(blueprint)
    return config | {"num_kv_heads": config["num_key_value_heads"], "multi_query": config["num_key_value_heads"] == 1}


TARGET = replace(_PLAIN, configure=_configure)
