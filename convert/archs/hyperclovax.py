"""HyperCLOVA X: Granite's factors, and norms behind attention and MLP where the config says so."""

from dataclasses import replace

from convert_attn.convert.archs.granite import ARCHITECTURE as GRANITE

ARCHITECTURE = replace(GRANITE, model_type="hyperclovax", after="post_norm1")
