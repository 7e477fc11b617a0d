"""Families whose stock attention meets a cache of fixed length (modeling/latent_sequence.py). Experimental."""

from dataclasses import replace

from convert_attn.convert.archs.cache_form import SharedHeads
from convert_attn.convert.archs.geometry import Geometry
from convert_attn.convert.targets.base import Blueprint, Config, Experiment, Target

SINKS = 4
FACTS = 3  # numbers that are kept of an entry of each key/value head besides: position, mass, received attention
_TURNS = ("default", "linear", "llama3")  # a frequency for each plane and nothing else


def _slots(blueprint: Blueprint) -> int:
    """How many there are; of a model that is only looked at an example."""
    return blueprint.slots or 256


def _tokens(blueprint: Blueprint) -> int:
    """How many tokens fit as they are."""
    return SINKS + 2 * _slots(blueprint)


def _told(blueprint: Blueprint) -> str:
    """Say what the result is, after its name."""
    slots, form = _slots(blueprint), blueprint.form
    where, original = (" for each K/V head", "original") if isinstance(form, SharedHeads) else ("", "MLA")
    return (
        f"the cache holds the first {SINKS} tokens, the last {slots}, and {slots} slots{where} into which "
        f"all between is merged; up to {_tokens(blueprint):,} tokens nothing is and the logits are the {original}'s, "
        "beyond that what is merged is lost in part (a prompt is attended to whole, and merged then)"
    )


def _refused(sizes: Geometry) -> str:
    """Why a model cannot have one, "" where it can."""
    if sizes.window is not None:
        return f"it has layers with a sliding window of {sizes.window:,} tokens, whose cache is of fixed length already"
    if sizes.turns and sizes.rope_type not in _TURNS:
        return f"rope type '{sizes.rope_type}' changes its rotation with the input's length, so keys cannot be merged"
    return ""


def _configure(blueprint: Blueprint) -> Config:
    slots = _slots(blueprint)
    return {"cache_slots": slots, "cache_window": slots, "cache_sinks": SINKS}


SEQUENCE = Experiment(
    to="latent-sequence",
    label=lambda blueprint: f"latent sequence of {_slots(blueprint)} slots",
    told=_told,
    refused=_refused,
    tokens=_tokens,
    facts=FACTS,
)

LATENTS = replace(
    SEQUENCE,
    to="mla",
    option=" --slots",
    label=lambda blueprint: f"{blueprint.form.label(blueprint.sizes.num_heads)}, {_slots(blueprint)} slots",
)


def with_slots(target: Target) -> Target:
    """Give the target beside one of ours with a latent: a cache of as few latents.

    Args:
        target: llama_mla or the like; beside it is llama_mla_slots.
    """
    own, prefix = f"{target.becomes}_slots", "MLA"
    return replace(
        target,
        name=own,
        becomes=own,
        configure=lambda blueprint: target.configure(blueprint) | _configure(blueprint),
        classes={
            stock: ours.replace(prefix, f"{prefix}Slots")
            for stock, ours in target.classes.items()
            if not ours.endswith("Classification")
        },
        experiment=LATENTS,
    )


def latent_sequence(model_type: str, prefix: str) -> Target:
    """Give the target of one family.

    Args:
        model_type: of the family; ours is <model_type>_slots.
        prefix: of its class names; ours is <prefix>Slots.
    """
    return SEQUENCE.target(model_type, prefix, "slots", configure=_configure)
