"""OLMo 3: OLMo 2 with a window in most layers."""

from dataclasses import replace

from convert_attn.convert.archs.olmo2 import ARCHITECTURE as OLMO2

ARCHITECTURE = replace(OLMO2, model_type="olmo3", legacy_config={})
