"""Our own CodeGen with shared heads (modeling/modeling_codegen_gqa.py): fewer rows of k and v in a shard."""

from dataclasses import replace

from convert_attn.convert.archs.codegen import ARCHITECTURE as CODEGEN

ARCHITECTURE = replace(CODEGEN, model_type="codegen_gqa", config_kv_heads="num_key_value_heads", buffers=())
