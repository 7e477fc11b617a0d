"""What a stage hands to the next one, and the last one to the result: by way of the workplace, so that a run goes on.

The layers' result is taken only where it helps the whole model, as the selection text tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from convert_attn.convert.heal.data.tokens import Text
from convert_attn.convert.heal.loss.halves import Halves
from convert_attn.convert.heal.loss.objective import Objective
from convert_attn.convert.heal.state.journal import START, Journal
from convert_attn.convert.heal.state.pair import Pair, into, load_model
from convert_attn.convert.heal.state.settings import LAYERWISE, Settings
from convert_attn.convert.heal.state.workplace import Workplace
from convert_attn.convert.heal.training.layerwise import name_of
from convert_attn.convert.heal.training.loop import BEST, window_sums
from convert_attn.convert.heal.training.lora import adapt, merged

_CHOSEN = "layers"  # what the layers have learned, if that helps the whole model


@dataclass(frozen=True)
class Handover:
    """Trained parameters, by their names in the model's class, on their way through a run."""

    pair: Pair
    settings: Settings
    place: Workplace

    def begin(
        self, accelerator: Accelerator, student: Any, teacher: Halves | None, text: Text, journal: Journal
    ) -> tuple[float, float]:
        """Give the layers' result into the student, if it is better, before the whole model's training.

        The first process decides for all, once: a run that is taken up finds the decision in the workplace.

        Returns:
            The objective on the selection text, of the student as converted and as it is now.
        """
        student.to(accelerator.device)
        if accelerator.is_main_process and not self.place.has(_CHOSEN):
            self._choose(accelerator, student, teacher, text, journal)
        accelerator.wait_for_everyone()
        into(student, self.place.kept(_CHOSEN) or {})
        facts = self.place.facts(_CHOSEN)
        return float(facts["start"]), float(facts["entry"])

    def _choose(
        self, accelerator: Accelerator, student: Any, teacher: Halves | None, text: Text, journal: Journal
    ) -> None:
        """Measure the student without and with what its layers have learned; keep the better."""
        objective = Objective.of(self.settings, teacher)

        def told(record: dict[str, Any], loss: float) -> None:
            journal.write(record if objective.last else record | {"selection_loss": loss})

        def measured() -> tuple[float, float]:
            parts = text.selection.split(self.settings.micro_batch_size or len(text.selection))
            sums = sum(window_sums(accelerator, student, teacher, part) for part in parts)
            kl, loss, _ = (sums / sums[2]).tolist()  # type: ignore[index]
            return objective.on_selection(kl, loss), loss

        before, loss = measured()
        told({"stage": START, "step": 0, "selection": before}, loss)
        chosen, after = self._layers(), before
        if chosen:
            present = dict(student.named_parameters())
            old = {name: present[name].detach().clone() for name in chosen}
            into(student, chosen)
            after, loss = measured()
            told({"stage": LAYERWISE, "step": -1, "selection": after}, loss)
            into(student, old)
            chosen = chosen if after < before else {}
        self.place.keep(_CHOSEN, chosen, {"start": before, "entry": min(before, after)})

    def _layers(self) -> dict[str, Tensor]:
        """What the stage over single blocks has kept."""
        if LAYERWISE not in self.settings.stages:
            return {}
        found: dict[str, Tensor] = {}
        for layer in range(int(self.pair.config.num_hidden_layers)):
            found |= self.place.kept(name_of(layer)) or {}
        return found

    def result(self) -> dict[str, Tensor]:
        """Give every parameter that the stages have trained, adapters merged."""
        if self.settings.whole is None:
            return self._layers()
        layers = self.place.kept(_CHOSEN) or {}
        best = self.place.kept(BEST) or {}
        if self.settings.lora_rank is None:
            return layers | best
        adapted = adapt(load_model(self.pair.student, torch.float32), self.settings.lora_rank)
        if layers:
            into(adapted.get_base_model(), _renamed(adapted, layers))
        into(adapted, best)
        return layers | merged(adapted)


def _renamed(adapted: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the plain model -> those in one with adapters, which wrap the layers they are on."""
    present = dict(adapted.get_base_model().named_parameters())
    found = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        found[name if name in present else f"{stem}.base_layer.{kind}"] = value
    return found
