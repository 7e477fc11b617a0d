"""Our own Falcon with shared heads (modeling/modeling_falcon_gqa.py): its names, a cache of its K/V heads."""

from dataclasses import replace

from convert_attn.convert.archs.falcon import ARCHITECTURE as FALCON

ARCHITECTURE = replace(
    FALCON, model_type="falcon_gqa", config_kv_heads="num_key_value_heads", judged="eager", buffers=()
)
