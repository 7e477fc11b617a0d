"""GPTBigCode: GPT-2 with ordinary [out, in] linears; one K/V head or one a head, q, k and v fused group by group."""

from dataclasses import replace

from convert_attn.convert.archs.gpt2 import ARCHITECTURE as GPT2
from convert_attn.convert.archs.packings import FusedGroups

ARCHITECTURE = replace(
    GPT2, model_type="gpt_bigcode", qkv=FusedGroups("attn.c_attn"), transposed=False, linears=(), buffers=("attn.bias",)
)
