"""The micro batch that a run goes on with: chosen by the memory there is, the same again when the run is taken up."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.memory.free_memory import free_memory, own_memory
from convert_attn.convert.heal.memory.prediction import MemoryPlan, Predictor, giga
from convert_attn.convert.heal.state.settings import Settings
from convert_attn.convert.heal.state.workplace import Workplace

_KEPT = "plan"
_COPIES = 4  # of whole logits: both models', and gradients
_USABLE = 0.95  # of what is free
_HOLES = 1.4  # a heap with holes to what is predicted: 1.28 seen on SmolLM2-135M


@dataclass(frozen=True)
class Room:
    """Memory for a process.

    Attributes:
        held: bytes that it has taken already.
        free: bytes that it may still take.
        name: of where they are, for messages.
    """

    held: int
    free: int
    name: str

    @classmethod
    def of(cls, device: torch.device, most: int | None) -> Room:
        """On a device, `most` bytes in all if that is not None; a CPU's is shared by the processes there."""
        held, free = own_memory(device), int(_USABLE * free_memory(device))
        if device.type != "cuda":
            free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if most is not None and most - held < free:
            return cls(held, max(0, most - held), f"--max-memory {giga(most)}, of which {giga(held)} are in use,")
        return cls(held, free, "the device" if device.type == "cuda" else "the machine")


def check_whole_logits(rows: int, vocabulary: int, device: torch.device) -> None:
    """Refuse a class whose logits cannot be made a few tokens at a time where all of them do not fit.

    Raises:
        ConvertAttnError: they do not.
    """
    needed, free = _COPIES * 4 * rows * vocabulary, int(_USABLE * free_memory(device))
    if needed > free:
        raise ConvertAttnError(
            f"the class computes its logits in a way that needs all of them at once: {giga(needed)} for {rows:,} "
            f"tokens, and {giga(free)} are free; give a smaller --micro-batch-size or --seq-len"
        )


def decide(predictor: Predictor, settings: Settings, place: Workplace) -> str:
    """Choose how a run goes about it and keep that in the workplace.

    Returns:
        What is predicted, in a sentence.

    Raises:
        ConvertAttnError: it does not fit, whatever is chosen.
    """
    room = Room.of(predictor.device, settings.max_memory)
    plan = predictor.choose(room.free, room.name)
    if place.has(_KEPT) and settings.micro_batch_size is None:  # for the same arithmetic to the end, if it still fits
        facts = place.facts(_KEPT)
        micro, again = int(facts["micro"]), bool(facts["checkpointing"]) or settings.gradient_checkpointing
        needs = predictor.needs(micro, again)
        if needs.peak <= room.free:
            plan = MemoryPlan(micro, again, needs)
    place.keep(_KEPT, {}, {"micro": plan.micro, "checkpointing": plan.checkpointing, "peak": plan.needs.peak})
    return plan.sentence(room.held, room.free, 0 if tight(place, room) else _holes(plan, predictor.device))


def _holes(plan: MemoryPlan, device: torch.device) -> int:
    """Bytes that the C library's heap may keep of what is freed, where nothing asks for them back."""
    return int((_HOLES - 1) * plan.needs.peak) if device.type == "cpu" else 0


def begun(place: Workplace) -> bool:
    """Tell whether a run has chosen before."""
    return place.has(_KEPT)


def tight(place: Workplace, room: Room) -> bool:
    """Tell whether what a heap keeps of freed activations may be too much for a process."""
    return int(place.facts(_KEPT)["peak"]) * _HOLES > room.free


def decided(accelerator: Accelerator, settings: Settings, place: Workplace) -> Settings:
    """Give the settings with what the first process has chosen for all."""
    accelerator.wait_for_everyone()
    facts = place.facts(_KEPT)
    return replace(settings, micro_batch_size=int(facts["micro"]), gradient_checkpointing=bool(facts["checkpointing"]))
