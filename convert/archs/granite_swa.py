"""Granite with windows in some layers, and a sink in every query head."""

from dataclasses import replace

from convert_attn.convert.archs.granite import ARCHITECTURE as GRANITE

ARCHITECTURE = replace(GRANITE, model_type="granite_swa", sinks="self_attn.sinks")
