"""What runs in a process of its own, where `convert_attn` cannot be imported: a checkpoint as its user meets it.

The files here import torch, transformers, safetensors and each other, nothing of this package. `serve.py` is the
process; `convert_attn.convert.verification.process` starts it.
"""
