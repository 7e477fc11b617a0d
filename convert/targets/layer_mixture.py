"""Families whose stock blocks take a gate over their states (modeling/mixture_of_layers.py). Experimental."""

from convert_attn.convert.archs.cache_form import LAYER_GATE
from convert_attn.convert.targets.base import Blueprint, Experiment, Shapes, Target

_GATE = f"norm.{LAYER_GATE}."


def _told(blueprint: Blueprint) -> str:
    """Say what the result is, after its name."""
    states = blueprint.sizes.num_layers + 1
    return (
        f"a gate in front of the last norm mixes the states of all {states - 1} layers and the embedding; it begins at "
        "zero, so that the logits are the original's until it is trained (`convert-attn heal --stages uptrain --train "
        "gate`); the cache is unchanged"
    )


def _gate(blueprint: Blueprint) -> Shapes:
    """The gate, all zeros, by names below the base model."""
    states = blueprint.sizes.num_layers + 1
    return {f"{_GATE}weight": (states, blueprint.sizes.hidden_size), f"{_GATE}bias": (states,)}


MIXTURE = Experiment(to="mixture-of-layers", label=lambda blueprint: "mixture of layers", told=_told)


def layer_mixture(model_type: str, prefix: str) -> Target:
    """Give the target of one family.

    Args:
        model_type: of the family; ours is <model_type>_mixture.
        prefix: of its class names; ours is <prefix>Mixture.
    """
    return MIXTURE.target(model_type, prefix, "mixture", configure=lambda blueprint: {}, zeros=_gate)
