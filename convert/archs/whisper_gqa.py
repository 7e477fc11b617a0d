"""Our own Whisper with shared heads (modeling/modeling_whisper_gqa.py): fewer rows of the decoder's k and v."""

from dataclasses import replace

from convert_attn.convert.archs.whisper import ARCHITECTURE as WHISPER

ARCHITECTURE = replace(WHISPER, model_type="whisper_gqa", config_kv_heads="num_key_value_heads")
