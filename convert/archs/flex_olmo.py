"""FlexOlmo: OLMo 2 with an MLP of experts."""

from dataclasses import replace

from convert_attn.convert.archs.olmo2 import ARCHITECTURE as OLMO2

ARCHITECTURE = replace(OLMO2, model_type="flex_olmo")
