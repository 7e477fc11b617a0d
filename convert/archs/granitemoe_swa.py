"""GraniteMoE with windows in some layers, and a sink in every query head."""

from dataclasses import replace

from convert_attn.convert.archs.granitemoe import ARCHITECTURE as GRANITEMOE

ARCHITECTURE = replace(GRANITEMOE, model_type="granitemoe_swa", sinks="self_attn.sinks")
