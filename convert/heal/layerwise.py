"""Stage "layerwise": every converted block learns to do what the original's block does with the original's inputs.

The blocks know nothing of each other: one pair of them is in memory at a time, and processes share them out. The text
is in memory as states between two blocks (tokens x hidden size in float32; in a file where that is large).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convert_attn.convert.calibrate import spool
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.journal import Journal
from convert_attn.convert.heal.pair import Pair, learns, without_dropout
from convert_attn.convert.heal.schedule import Schedule
from convert_attn.convert.heal.settings import LAYERWISE, Settings
from convert_attn.convert.heal.workplace import Workplace
from convert_attn.convert.progress import Progress
from convert_attn.convert.skeleton import Call, Skeleton


class _Blocks:
    """One checkpoint's blocks, called as its base model calls them."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        without_dropout(skeleton.model)
        self._calls: dict[tuple[int, ...], list[Call]] = {}

    def prepare(self, tokens: Tensor) -> None:
        """Learn what blocks are called with for windows of this shape."""
        if tuple(tokens.shape) not in self._calls:
            self._calls[tuple(tokens.shape)] = self.skeleton.calls(tokens)

    def run(self, layer: int, states: Tensor) -> Tensor:
        """The block's output [B, T, D]."""
        call = self._calls[tuple(states.shape[:2])][layer]
        out: Tensor = self.skeleton.blocks[layer](states, *call.args, **call.kwargs)
        return out

    @contextmanager
    def loaded(self, layer: int) -> Iterator[nn.Module]:
        """A block with its weights."""
        stem = f"{self.skeleton.stem}{layer}."
        names = self.skeleton.names(lambda name: name.startswith(stem))
        self.skeleton.fill(names)
        try:
            yield self.skeleton.blocks[layer]
        finally:
            self.skeleton.empty(names)


@dataclass
class _Text:
    """Windows on their way through the original: before a block and after it, [n, T, D] each."""

    before: Tensor
    after: Tensor

    def advance(self, blocks: _Blocks, layer: int, size: int) -> None:
        """What the original's block makes of `before`."""
        device = blocks.skeleton.device
        with torch.no_grad():
            for states, place in zip(self.before.split(size), self.after.split(size), strict=True):
                place.copy_(blocks.run(layer, states.to(device)))

    def turn(self) -> None:
        """What was after is before the next block."""
        self.before, self.after = self.after, self.before


@dataclass
class Layerwise:
    """The stage.

    Args:
        windows: [n, T] token ids to train on, in their order.
        selection: [m, T] token ids to choose on.
    """

    accelerator: Accelerator
    pair: Pair
    settings: Settings
    windows: Tensor
    selection: Tensor
    place: Workplace
    journal: Journal

    def run(self, progress: Progress) -> None:
        """Train the blocks that have not been trained yet; the results are kept in the workplace.

        Raises:
            ConvertAttnError: a loss is not finite.
        """
        assert self.pair.teacher is not None
        device = str(self.accelerator.device)
        teacher = _Blocks(Skeleton(self.pair.teacher, device=device, attention="sdpa"))
        student = _Blocks(Skeleton(self.pair.student, device=device, attention="sdpa"))
        size, layers = self._size(), len(student.skeleton.blocks)
        with ExitStack() as stack:
            texts = [self._enter(stack, teacher, student, tokens, size) for tokens in (self.windows, self.selection)]
            for layer in range(layers):
                progress(LAYERWISE, layer, layers)
                with teacher.loaded(layer):
                    for text in texts:
                        text.advance(teacher, layer, size)
                mine = layer % self.accelerator.num_processes == self.accelerator.process_index
                if mine and self.place.kept(name_of(layer)) is None:
                    self._train(layer, student, *texts)
                for text in texts:
                    text.turn()
        progress(LAYERWISE, layers, layers)
        self.accelerator.wait_for_everyone()

    def _size(self) -> int:
        """Windows per forward call."""
        return min(self.settings.micro_batch_size or len(self.windows), self._step_windows())

    def _step_windows(self) -> int:
        return min(self.settings.windows_per_step(self.windows.shape[1]), len(self.windows))

    def _enter(self, stack: ExitStack, teacher: _Blocks, student: _Blocks, tokens: Tensor, size: int) -> _Text:
        shape = (*tokens.shape, self.pair.config.hidden_size)
        text = _Text(stack.enter_context(spool(shape)), stack.enter_context(spool(shape)))
        parts = tokens.split(size)
        for part in parts:
            teacher.prepare(part)
            student.prepare(part)
        for place, states in zip(text.before.split(size), teacher.skeleton.embed(parts), strict=True):
            place.copy_(states)
        return text

    def _train(self, layer: int, student: _Blocks, text: _Text, selection: _Text) -> None:
        """One block; kept if it does better on the selection text than as it was converted."""
        with student.loaded(layer) as block:
            chosen = {name: p for name, p in block.named_parameters() if learns(name, self.settings.learned)}
            for parameter in chosen.values():
                parameter.requires_grad_(True)
            before = self._error(student, layer, selection)
            start = {name: parameter.detach().clone() for name, parameter in chosen.items()}
            self._steps(layer, student, text, [*chosen.values()])
            after = self._error(student, layer, selection)
            if not after <= before:
                chosen, after = {name: nn.Parameter(value) for name, value in start.items()}, before
            stem = f"{student.skeleton.model.base_model_prefix}.{student.skeleton.stem}{layer}."
            record: dict[str, Any] = {"stage": LAYERWISE, "step": layer, "before": before, "after": after}
            self.place.keep(name_of(layer), {stem + name: parameter for name, parameter in chosen.items()}, record)
            self.journal.write(record)

    def _error(self, student: _Blocks, layer: int, text: _Text) -> float:
        """Squared error of the block's output on a text, as a share of what the block adds to its input."""
        missed = changed = 0.0
        device, size = student.skeleton.device, self._size()
        with torch.no_grad():
            for before, after in zip(text.before.split(size), text.after.split(size), strict=True):
                states, wanted = before.to(device), after.to(device)
                missed += float((student.run(layer, states) - wanted).square().sum(dtype=torch.float64))
                changed += float((wanted - states).square().sum(dtype=torch.float64))
        return missed / max(changed, 1e-200)

    def _steps(self, layer: int, student: _Blocks, text: _Text, parameters: list[nn.Parameter]) -> None:
        """Once over the text."""
        settings, device, size = self.settings, student.skeleton.device, self._size()
        per_step = self._step_windows()
        steps = len(self.windows) // per_step
        schedule = Schedule.of(steps, settings.warmup, settings.layer_rate(self.pair.config.hidden_size))
        optimizer = torch.optim.AdamW(
            parameters, lr=schedule.rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
        )
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step)
            chosen = slice(step * per_step, (step + 1) * per_step)
            wanted_all, states_all = text.after[chosen], text.before[chosen]
            energy = float((wanted_all - states_all).square().sum()) or 1.0
            for states, wanted in zip(states_all.split(size), wanted_all.split(size), strict=True):
                with self.accelerator.autocast():
                    out = student.run(layer, states.to(device))
                loss = (out.float() - wanted.to(device)).square().sum() / energy
                if not torch.isfinite(loss):
                    raise ConvertAttnError(
                        f"the loss of layer {layer} is {float(loss)} at step {step + 1} of stage {LAYERWISE}: give a "
                        f"lower --layer-lr than {schedule.rate:.3g}"
                    )
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def name_of(layer: int) -> str:
    """Under what a layer's result is kept."""
    return f"layer-{layer:04d}"
