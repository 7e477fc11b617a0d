"""VaultGemma: Gemma 2 without norms behind attention and MLP."""

from dataclasses import replace

from convert_attn.convert.archs.gemma2 import ARCHITECTURE as GEMMA2

ARCHITECTURE = replace(GEMMA2, model_type="vaultgemma", after="", mlp_output="mlp.down_proj")
