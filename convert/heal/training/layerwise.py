"""Stage "layerwise": every converted block learns to give what the original's block gives.

One pair of blocks is in memory at a time. The text is there as states between two blocks (tokens x hidden size in
float32, in a file where that is large). What the student's block reads is one of

    student   what the student's blocks before it, trained already, have made of the text: what they lost is made good
              as far as this one can see it, as in the refit of a conversion. Processes share the windows of a step.
    original  what the original's block reads: the blocks know nothing of each other, and processes share them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convert_attn.convert.calibration.calibrate import spool
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.state.journal import Journal
from convert_attn.convert.heal.state.pair import Pair, into, learns, without_dropout
from convert_attn.convert.heal.state.schedule import Schedule
from convert_attn.convert.heal.state.settings import LAYERWISE, Settings
from convert_attn.convert.heal.state.workplace import Workplace
from convert_attn.convert.progress import Progress
from convert_attn.convert.streaming.skeleton import Call, Skeleton
from convert_attn.convert.weights.relative_error import relative_error as bounded

STOPPED = "layers-stopped"  # under which is kept that the stage has ended early
_TRIED, _ENOUGH = 3, 0.05  # blocks, of which one must lose such a share of its error for the others to be trained
_SHARE_TO_GO_ON = 0.5


class _Blocks:
    """One checkpoint's blocks, called as its base model calls them."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        without_dropout(skeleton.model)
        self._calls: dict[tuple[int, ...], list[Call]] = {}

    def run(self, layer: int, states: Tensor) -> Tensor:
        """Give the block's output [B, T, D]."""
        shape = tuple(states.shape[:2])
        if shape not in self._calls:  # masks and positions depend on the shape alone
            self._calls[shape] = self.skeleton.calls(torch.zeros(shape, dtype=torch.int64))
        call = self._calls[shape][layer]
        given = self.skeleton.blocks[layer](states, *call.args, **call.kwargs)
        out: Tensor = given[0] if isinstance(given, tuple) else given
        return out

    def embed(self, tokens: Tensor, size: int, place: Tensor) -> None:
        """Write the states that enter the first block: windows [n, T] -> [n, T, D]."""
        for part, states in zip(place.split(size), self.skeleton.embed(tokens.split(size)), strict=True):
            part.copy_(states)

    @contextmanager
    def loaded(self, layer: int) -> Iterator[nn.Module]:
        """Give a block with its weights."""
        stem = f"{self.skeleton.stem}{layer}."
        with self.skeleton.filled(self.skeleton.names(lambda name: name.startswith(stem))):
            yield self.skeleton.blocks[layer]


@dataclass
class _LayerText:
    """Windows on their way through both models, [n, T, D] each.

    Attributes:
        before, after: in the original, before a block and after it.
        own: in the student, before the block; the same tensor as `before` where it reads the original's inputs.
    """

    before: Tensor
    after: Tensor
    own: Tensor

    def advance(self, blocks: _Blocks, layer: int, size: int) -> None:
        """What the original's block makes of `before`."""
        self._through(blocks, layer, size, self.before, self.after)

    def follow(self, blocks: _Blocks, layer: int, size: int) -> None:
        """The student's own states past its block."""
        if self.own is not self.before:
            self._through(blocks, layer, size, self.own, self.own)

    @torch.no_grad()
    def _through(self, blocks: _Blocks, layer: int, size: int, given: Tensor, made: Tensor) -> None:
        device = blocks.skeleton.device
        for states, place in zip(given.split(size), made.split(size), strict=True):
            place.copy_(blocks.run(layer, states.to(device)))

    def turn(self) -> None:
        """What was after is before the next block."""
        follows = self.own is self.before
        self.before, self.after = self.after, self.before
        if follows:
            self.own = self.before

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give batches of all three."""
        return zip(self.before.split(size), self.after.split(size), self.own.split(size), strict=True)


@dataclass(kw_only=True)
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
        if not self.place.has(STOPPED):
            self._blocks(progress)
        self.accelerator.wait_for_everyone()
        # of other processes, or of a run that was killed before it could tell
        names = [*map(name_of, range(int(self.pair.config.num_hidden_layers))), STOPPED]
        self.journal.complete([self.place.facts(name) for name in names if self.place.has(name)])

    def _blocks(self, progress: Progress) -> None:
        """One after the other, to the last, or to where they gain too little."""
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
                if not self._independent or layer % self.accelerator.num_processes == self.accelerator.process_index:
                    self._settle(layer, student, *texts)
                for text in texts:
                    text.turn()
                if layer + 1 == _TRIED < layers and self.settings.layers_must_gain and self._give_up(layers):
                    break
        progress(LAYERWISE, layers, layers)

    def _give_up(self, layers: int) -> bool:
        """Whether the blocks so far have gained too little for the others to be trained; said where it is so."""
        self.accelerator.wait_for_everyone()
        facts = [self.place.facts(name_of(layer)) for layer in range(_TRIED)]
        most = max(1 - fact["after"] / max(fact["before"], 1e-200) for fact in facts)
        if most >= _ENOUGH:
            return False
        told = (
            f"stage {LAYERWISE} ends after {_TRIED} of {layers} blocks: none has lost {_ENOUGH:.0%} of its error (at "
            f"most {most:.1%}), so what the others would have read goes to stage {self.settings.whole}; --layer-share "
            f"{_SHARE_TO_GO_ON} trains them all the same"
        )
        record = {"stage": LAYERWISE, "step": _TRIED, "blocks": layers, "stopped": told}
        if self.accelerator.is_main_process:
            self.place.keep(STOPPED, {}, record)
        return True

    @property
    def _independent(self) -> bool:
        return self.settings.layer_inputs == "original"

    def _size(self) -> int:
        """Windows per forward call."""
        return min(self.settings.micro_batch_size or len(self.windows), self._step_windows())

    def _step_windows(self) -> int:
        return min(self.settings.windows_per_step, len(self.windows))

    def _enter(self, stack: ExitStack, teacher: _Blocks, student: _Blocks, tokens: Tensor, size: int) -> _LayerText:
        shape = (*tokens.shape, self.pair.config.hidden_size)
        before, after = (stack.enter_context(spool(shape)) for _ in range(2))
        text = _LayerText(before, after, before if self._independent else stack.enter_context(spool(shape)))
        teacher.embed(tokens, size, text.before)
        if not self._independent:  # all that has been trained before, embeddings too, may differ from the original's
            student.embed(tokens, size, text.own)
        return text

    def _settle(self, layer: int, student: _Blocks, text: _LayerText, selection: _LayerText) -> None:
        """One block, as it was trained before a break or trained now; the student's states go past it."""
        stem = f"{student.skeleton.base}{student.skeleton.stem}{layer}."
        with student.loaded(layer) as block:
            known = self.place.kept(name_of(layer))
            if known is None:
                known = self._train(layer, stem, student=student, block=block, text=text, selection=selection)
            into(block, {name.removeprefix(stem): value for name, value in known.items()})
            for followed in (text, selection):
                followed.follow(student, layer, self._size())

    def _train(
        self, layer: int, stem: str, *, student: _Blocks, block: nn.Module, text: _LayerText, selection: _LayerText
    ) -> dict[str, Tensor]:
        """What a block has learned, by full names; what it was where that does no better on the selection text."""
        chosen = {name: p for name, p in block.named_parameters() if learns(name, self.settings.learned)}
        before = self._error(student, layer, selection)
        start: dict[str, Tensor] = {stem + name: parameter.detach().clone() for name, parameter in chosen.items()}
        found, after = start, before
        for rate in self.settings.layer_rates(self.pair.config.hidden_size):
            self._steps(layer, student, text, [*chosen.values()], rate)
            error = self._error(student, layer, selection)
            if error < before:
                found, after = {stem + name: parameter for name, parameter in chosen.items()}, error
                break
            into(block, {name.removeprefix(stem): value for name, value in start.items()})
        if self._independent or self.accelerator.is_main_process:
            record: dict[str, Any] = {"stage": LAYERWISE, "step": layer, "blocks": len(student.skeleton.blocks)}
            record |= {"before": before, "after": after}
            self.place.keep(name_of(layer), found, record)
            self.journal.write(record)
        return found

    def _error(self, student: _Blocks, layer: int, text: _LayerText) -> float:
        """The error of the block's output on a text: see `relative_error`, the mean over tokens."""
        total, device = 0.0, student.skeleton.device
        with torch.no_grad():
            for _, after, own in text.parts(self._size()):
                found = relative_error(student.run(layer, own.to(device)), after.to(device))
                total += float(found.sum(dtype=torch.float64))
        error = total / text.after[..., 0].numel()
        # the processes must come to the same decision
        return (
            error if self._independent else float(self.accelerator.reduce(torch.tensor(error, device=device), "mean"))
        )

    def _steps(
        self, layer: int, student: _Blocks, text: _LayerText, parameters: list[nn.Parameter], rate: float
    ) -> None:
        """Once over the text."""
        for parameter in parameters:
            parameter.requires_grad_(True)
        settings, device, size = self.settings, student.skeleton.device, self._size()
        per_step = self._step_windows()
        steps = len(self.windows) // per_step
        schedule = Schedule.of(steps, settings.warmup, rate)
        optimizer = schedule.optimizer(parameters, settings.weight_decay)
        for step in range(steps):
            schedule.set_rate(optimizer, step)
            places = torch.arange(step * per_step, (step + 1) * per_step)
            for part in self._own(places).split(size):
                with self.accelerator.autocast():
                    out = student.run(layer, text.own[part].to(device))
                loss = relative_error(out.float(), text.after[part].to(device)).sum() / text.after[places, :, 0].numel()
                loss.backward()
            self._exchange(layer, step, schedule.rate, parameters)
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for parameter in parameters:
            parameter.requires_grad_(False)

    def _own(self, places: Tensor) -> Tensor:
        """This process's windows of a step."""
        if self._independent:
            return places
        return places[self.accelerator.process_index :: self.accelerator.num_processes]

    def _exchange(self, layer: int, step: int, rate: float, parameters: list[nn.Parameter]) -> None:
        """Gradients summed over processes.

        Raises:
            ConvertAttnError: they are not finite.
        """
        finite = True
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient if self._independent else self.accelerator.reduce(gradient, "sum")
            finite = finite and bool(torch.isfinite(parameter.grad).all())
        if not finite:
            raise ConvertAttnError(
                f"the gradients of layer {layer} are not finite at step {step + 1} of stage {LAYERWISE}: give a lower "
                f"--layer-lr than {rate:.3g}"
            )


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """The error [B, T] of states [B, T, D] relative to those that are wanted: a block is trained for no token alone."""
    return bounded((found - wanted).square().sum(-1), wanted.square().sum(-1))


def name_of(layer: int) -> str:
    """Under what a layer's result is kept."""
    return f"layer-{layer:04d}"
