"""GraniteMoE with experts that all tokens share."""

from dataclasses import replace

from convert_attn.convert.archs.granitemoe import ARCHITECTURE as GRANITEMOE

ARCHITECTURE = replace(GRANITEMOE, model_type="granitemoeshared")
