"""Apertus 1.5's language model: Apertus."""

from dataclasses import replace

from convert_attn.convert.archs.apertus import ARCHITECTURE as APERTUS

ARCHITECTURE = replace(APERTUS, model_type="apertus1p5_text")
