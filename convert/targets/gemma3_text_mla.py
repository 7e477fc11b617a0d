"""Gemma 3's text model with a latent cache: our modeling/modeling_gemma3_text_mla.py."""

from dataclasses import replace

from convert_attn.convert.targets.stock_latent import stock_latent

_STOCK = stock_latent("gemma3_text", "Gemma3", computes=("windows by layer", "norm", "soft cap"))
TARGET = replace(_STOCK, classes={"Gemma3TextModel": "Gemma3MLAModel", "Gemma3ForCausalLM": "Gemma3MLAForCausalLM"})
