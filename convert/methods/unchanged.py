"""Every weight as it is: what the experimental targets ask for, which add to a model or cache otherwise."""

from __future__ import annotations

from convert_attn.convert.methods.base import Method

METHOD = Method(
    name="unchanged",
    summary="experimental targets: every weight stays, what is new begins without effect",
    source="modeling/mixture_of_layers.py and modeling/latent_sequence.py",
    experiments=("mixture-of-layers", "latent-sequence"),
)
