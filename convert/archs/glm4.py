"""GLM-4: GLM with norms behind attention and MLP, too."""

from dataclasses import replace

from convert_attn.convert.archs.glm import ARCHITECTURE as GLM

ARCHITECTURE = replace(GLM, model_type="glm4", after="post_self_attn_layernorm", mlp_output=None)
