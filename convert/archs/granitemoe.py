"""GraniteMoE: Granite with an MLP of experts."""

from dataclasses import replace

from convert_attn.convert.archs.granite import ARCHITECTURE as GRANITE

ARCHITECTURE = replace(GRANITE, model_type="granitemoe")
