"""Stages "distill" and "uptrain": the whole student trained, on one process or many.

Everything distributed is accelerate's. A step takes the same windows whatever the number of processes; the best
weights so far, by the selection text, are kept on disk, the start among them.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.data.tokens import Text
from convert_attn.convert.heal.loss.halves import Halves
from convert_attn.convert.heal.loss.objective import Objective, predicted
from convert_attn.convert.heal.state.journal import Journal
from convert_attn.convert.heal.state.pair import into
from convert_attn.convert.heal.state.schedule import Schedule
from convert_attn.convert.heal.state.settings import Settings
from convert_attn.convert.heal.state.workplace import Workplace
from convert_attn.convert.progress import Progress
from convert_attn.convert.text.pair_windows import count_tokens, has_sides

BEST = "best"
_MEASUREMENTS, _FEWEST = 20, 4  # over a run, unless the user says otherwise
_DIVERGED = 1.0  # nats above twice the start


def checkpoint_activations(model: Any, reentrant: bool = False) -> None:
    """Compute the layers' activations again in the backward pass, to save memory, by transformers' way."""
    # the name since transformers 5.23; the other one warns since 5.24
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


@dataclass(kw_only=True)
class Progressed:
    """How far a run is: what a state holds besides what accelerate saves.

    Attributes:
        start, best: on the selection text, before training and at `best_step`.
        lowest: of the measurements since training began.
        stale: how many measurements ago that was.
    """

    step: int = 0
    start: float = math.inf
    best: float = math.inf
    best_step: int = 0
    lowest: float = math.inf
    stale: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class Training:
    """A run over the whole student.

    Args:
        student: on the CPU, trainable parameters marked, `attach`ed; prepared here.
        teacher: frozen and on its device, None where it is not needed.
        first: the first window of the text that is for this stage.
        tokens: to train on.
        hidden_size: of the model, for the learning rate.
        entry: on the selection text, as the training begins; for the learning rate too.
    """

    accelerator: Accelerator
    settings: Settings
    student: Any
    teacher: Halves | None
    text: Text
    first: int
    tokens: int
    hidden_size: int
    place: Workplace
    journal: Journal
    entry: float
    done: Progressed = field(default_factory=Progressed)

    def __post_init__(self) -> None:
        settings = self.settings
        self.stage = str(settings.whole)
        self.objective = Objective.of(settings, self.teacher)
        self._per_step = settings.windows_per_step
        self._own, self._micro = settings.shares(self.accelerator.num_processes)
        steps = max(1, self.tokens // (self._per_step * self.text.tokens_each))
        self.schedule = Schedule.of(
            steps, settings.warmup, settings.rate(self.hidden_size, self.text.tokens_each, self.entry)
        )
        # a measurement reads the selection text: of a short run, where that is as long, it would be most of the work
        times = min(_MEASUREMENTS, max(_FEWEST, self.tokens // count_tokens(self.text.selection)))
        self._eval_every = settings.eval_every or max(1, -(-steps // times))
        self._save_every = settings.save_every or self._eval_every
        trainable = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        optimizer = self.schedule.optimizer(trainable, settings.weight_decay)
        if settings.gradient_checkpointing:
            checkpoint_activations(self.student)
        self.student.train()  # gradient checkpointing asks for it; there is no dropout
        self._fully_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        self._model, self._optimizer = self.accelerator.prepare(self.student, optimizer)
        if not self._fully_sharded:
            self.accelerator.register_save_state_pre_hook(self._save_trainable)
            self.accelerator.register_load_state_pre_hook(self._load_trainable)

    def run(self, progress: Progress) -> Progressed:
        """Train to the end, or until the selection text has had no better value for as long as was asked for.

        Raises:
            ConvertAttnError: the loss is not finite, or the run diverges.
        """
        self._take_up()
        begun = time.perf_counter() - self.done.seconds
        while self.done.step < self.schedule.steps:
            progress(self.stage, self.done.step, self.schedule.steps)
            self._step()
            self.done.seconds = time.perf_counter() - begun
            ended = self.done.step == self.schedule.steps
            if ended or self.done.step % self._eval_every == 0:
                self._measure()
                if self.settings.patience is not None and self.done.stale >= self.settings.patience:
                    break
            if not ended and self.done.step % self._save_every == 0:
                self._save()
        progress(self.stage, self.schedule.steps, self.schedule.steps)
        return self.done

    def _take_up(self) -> None:
        """From the last state, or from the beginning."""
        state = self.place.last_state()
        if state is None:
            self._rewind(0)
            self._measure()
            self._save()
            return
        folder, facts = state
        self.accelerator.load_state(str(folder))
        self.done = Progressed(**facts)
        self._rewind(self.done.step)

    def _rewind(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self.journal.rewind(self.stage, step)

    def _windows(self) -> list[Tensor]:
        """This process's part of the step, a forward call each."""
        first = self.first + self.done.step * self._per_step + self.accelerator.process_index * self._own
        batch = self.text.batch(first, self._own)
        return [part.to(self.accelerator.device) for part in batch.split(self._micro)]

    def _step(self) -> None:
        begun = time.perf_counter()
        rate = self.schedule.set_rate(self._optimizer, self.done.step)
        sums: dict[str, Tensor] = {}
        parts = self._windows()
        counts = [predicted(part) for part in parts]
        for number, tokens in enumerate(parts):
            share = sum(counts) / counts[number]  # of pairs a mean is over fewer tokens or more
            with self._synchronised(number + 1 == len(parts)):
                with self.accelerator.autocast():
                    found = self.objective.parts(self._model, self.teacher, tokens)
                self.accelerator.backward(found["loss"] / share)
            for name, value in found.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / share
        figures = {name: float(self.accelerator.reduce(value.float(), "mean")) for name, value in sums.items()}
        self._check_finite(figures["loss"], rate)
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.done.step += 1
        tokens_per_step = self._per_step * self.text.tokens_each
        self.journal.write(
            {
                "stage": self.stage,
                "step": self.done.step - 1,
                "steps": self.schedule.steps,
                "tokens": self.done.step * tokens_per_step,
                **figures,
                "lr": rate,
                "grad_norm": float(norm) if norm is not None else None,
                "tokens_per_second": round(tokens_per_step / (time.perf_counter() - begun), 1),
            }
        )

    def _synchronised(self, last: bool) -> Any:
        """Gradients are exchanged once a step: at its last forward call."""
        return nullcontext() if last else self.accelerator.no_sync(self._model)

    def _check_finite(self, loss: float, rate: float) -> None:
        if not math.isfinite(loss):
            raise ConvertAttnError(
                f"the loss is {loss} at step {self.done.step + 1} of stage {self.stage} (learning rate {rate:.3g}): "
                f"give a lower --lr than {self.schedule.rate:.3g}, or --mixed-precision no; nothing was written"
            )

    def _measure(self) -> None:
        """The student on the selection text: KL to the teacher where there is one, and the text's own loss."""
        windows, processes = self.text.selection, self.accelerator.num_processes
        own = [*range(self.accelerator.process_index, len(windows), processes)]
        # as many forward calls on every process, or they would wait for each other
        rounds = math.ceil(math.ceil(len(windows) / processes) / self._micro)
        sums = torch.zeros(3, dtype=torch.float64)
        for number in range(rounds):
            places = own[number * self._micro : (number + 1) * self._micro]
            found = window_sums(self.accelerator, self._model, self.teacher, windows[places or [0]])
            sums += found if places else 0.0
        total = self.accelerator.reduce(sums.to(self.accelerator.device, torch.float32), "sum").tolist()
        kl, loss = total[0] / total[2], total[1] / total[2]
        self._note(self.objective.on_selection(kl, loss), kl if self.teacher is not None else None, loss)

    def _note(self, value: float, kl: float | None, loss: float) -> None:
        """Write a measurement down; keep the weights if it is the best."""
        if self.done.start == math.inf:
            self.done.start = value
        if not math.isfinite(value) or value > 2 * self.done.start + _DIVERGED:
            raise ConvertAttnError(
                f"the run diverges: {value:.4g} on the selection text after {self.done.step} steps, "
                f"{self.done.start:.4g} at the start; give a lower --lr than {self.schedule.rate:.3g}"
            )
        if value < self.done.best:
            self.done.best, self.done.best_step = value, self.done.step
            self._keep_best()
        # patience is with the run's own course: at a high rate it may stay above a good start until the rate falls
        better = self.done.step == 0 or value < self.done.lowest
        self.done.lowest = min(value, self.done.lowest) if self.done.step else math.inf
        self.done.stale = 0 if better else self.done.stale + 1
        record = {
            "stage": self.stage,
            "step": self.done.step,
            "steps": self.schedule.steps,
            "tokens": self.done.step * self._per_step * self.text.tokens_each,
            "selection": value,
            **({} if self.objective.last else {"selection_loss": loss}),
            "seconds": round(self.done.seconds, 2),
        }
        kl = None if self.objective.last else kl
        self.journal.write(record if kl is None else record | {"selection_kl": kl})

    def _trainable(self) -> dict[str, Tensor]:
        """Name -> tensor of what is trained, whole on the first process."""
        plain = self.accelerator.unwrap_model(self._model)
        names = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
        if not self._fully_sharded:
            return {name: parameter for name, parameter in plain.named_parameters() if name in names}
        state = self.accelerator.get_state_dict(self._model)
        return {name: value for name, value in state.items() if name in names}

    def _keep_best(self) -> None:
        tensors = self._trainable()
        if self.accelerator.is_main_process:
            self.place.keep(BEST, tensors, {"step": self.done.step, "selection": self.done.best})

    def _save(self) -> None:
        """The state after this step."""
        partial = self.place.partial_state(self.done.step)
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.place.state_is_whole(self.done.step, vars(self.done))
        self.accelerator.wait_for_everyone()

    def _save_trainable(self, models: list[nn.Module], weights: list[Any], folder: str) -> None:
        """accelerate's hook: only what is trained goes into a state, in the place of the whole model."""
        from safetensors.torch import save_file

        if self.accelerator.is_main_process:
            tensors = {name: value.detach().cpu().contiguous() for name, value in self._trainable().items()}
            save_file(tensors, str(Path(folder) / "trained.safetensors"))
        weights.clear()

    def _load_trainable(self, models: list[nn.Module], folder: str) -> None:
        """accelerate's hook: the other way."""
        from safetensors.torch import load_file

        into(self.accelerator.unwrap_model(models.pop()), load_file(str(Path(folder) / "trained.safetensors")))


@torch.no_grad()
def window_sums(accelerator: Accelerator, student: Any, teacher: Halves | None, windows: Tensor) -> Tensor:
    """[KL, loss, 1] summed over windows [n, T], each window's mean over its tokens in nats; KL 0 without a teacher.

    Of pairs [KL, loss, 1] summed over the tokens that are predicted. Of an encoder the error of the last hidden states
    in the place of KL, and no loss of the text's own.
    """
    with accelerator.autocast():
        found = Objective.measured(teacher).parts(student, teacher, windows.to(accelerator.device))
    distance, loss = found.get("kl", found.get("last", 0.0)), found.get("lm", 0.0)
    count = predicted(windows) if has_sides(windows) else len(windows)
    return count * torch.tensor([float(distance), float(loss), 1.0], dtype=torch.float64)
