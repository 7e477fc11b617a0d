"""GPTBigCode: GPT-2 with one shared K/V head and ordinary [out, in] linears."""

from dataclasses import replace

from convert_attn.convert.archs.gpt2 import ARCHITECTURE as GPT2

ARCHITECTURE = replace(
    GPT2, model_type="gpt_bigcode", config_kv_heads="num_key_value_heads", transposed=False, linears=()
)
