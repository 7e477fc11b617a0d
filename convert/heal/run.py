"""A run of `heal` from end to end: every check first, then the stages, then the output folder, whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from convert_attn.convert.checkpoint.quantised import leftover_warning
from convert_attn.convert.checkpoint.writer import check_output
from convert_attn.convert.errors import ConvertAttnError, UsageError, check_options
from convert_attn.convert.heal.data.pair_texts import PairTexts
from convert_attn.convert.heal.data.texts import Texts
from convert_attn.convert.heal.data.tokens import Text, open_text, pack, window_length
from convert_attn.convert.heal.memory import planning
from convert_attn.convert.heal.memory.planning import Room
from convert_attn.convert.heal.memory.prediction import Predictor
from convert_attn.convert.heal.request import accelerator_of, default_output, stages_of, teacher_of
from convert_attn.convert.heal.result import (
    Healed,
    Trained,
    describe_run,
    measured_losses,
    write_result,
)
from convert_attn.convert.heal.state import journal as journals
from convert_attn.convert.heal.state.journal import LOG, Journal, Show
from convert_attn.convert.heal.state.pair import Pair, open_pair
from convert_attn.convert.heal.state.settings import (
    DEFAULT_STAGES,
    HealOptions,
    Settings,
)
from convert_attn.convert.heal.state.workplace import Workplace, failures_in_words
from convert_attn.convert.heal.training.handover import Handover
from convert_attn.convert.heal.training.layerwise import STOPPED, Layerwise
from convert_attn.convert.heal.training.loop import Progressed
from convert_attn.convert.heal.training.whole import Whole, narrow_dtype
from convert_attn.convert.heap import return_large_blocks
from convert_attn.convert.progress import Progress, silent
from convert_attn.convert.text.encoder_windows import WINDOW
from convert_attn.convert.text.pair_windows import HALVED

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LONGEST_WINDOW = 2048


def heal(
    converted: str | Path,
    *,
    data: str | Path | Sequence[str | Path],
    tokens: int,
    data_weights: Sequence[int] | None = None,
    teacher: str | Path | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cpu: bool = False,
    tensorboard: str | Path | None = None,
    exclude: str | Path | None = None,
    stages: Sequence[str] = DEFAULT_STAGES,
    progress: Progress = silent,
    show: Show = journals.hidden,
    command: str | None = None,
    **options: Unpack[HealOptions],
) -> Healed:
    """Train a converted checkpoint towards its original.

    Under `accelerate launch` every process calls this with the same arguments; they share a file system.

    Args:
        converted: a folder that convert-attn made.
        data: text to train on: "sample", what `convert_attn.convert.text.documents.read_documents` takes, or a .npy
            file of windows of token ids; or several of these, drawn from in turn. Of an encoder-decoder pairs, see
            `convert_attn.convert.text.pairs.read_pairs`, or text whose windows are halved.
        tokens: to train on, all stages together.
        data_weights: whole numbers, the shares of several texts; None: equal ones.
        teacher: the original; None: the one recorded in the checkpoint, where that can be found.
        output: folder to make; None: the converted folder's name and "-healed".
        resume: go on with a run to the same output that was broken off.
        overwrite: replace the output, or an unfinished run to it.
        cpu: stay on the CPU where there is an accelerator.
        tensorboard: folder for TensorBoard's files.
        exclude: text like `data`, which the model is to be measured on: windows that have 64 or more tokens in a row in
            common with it are left out.
        stages: see `Settings`.
        progress: called with a stage's name, how much of it is done, and how much there is.
        show: called with every record of the log, on the first process.
        command: what the result's config gives as the command that made it.
        options: the other fields of `Settings`.

    Raises:
        UsageError: something asked for cannot be done; nothing was begun.
        ConvertAttnError: the run failed, in one sentence; nothing was written to `output`.
    """
    own = signature(heal).parameters.keys() - {"options"}
    check_options("heal", options, [*own, *HealOptions.__annotations__])
    settings = Settings(tokens=tokens, stages=tuple(stages), **options)
    texts = Texts.of(data, data_weights, exclude)
    pair = open_pair(str(converted), teacher_of(str(converted), teacher, settings))
    settings, left_out = stages_of(pair, settings)
    if pair.encoder and settings.lm_weight:
        raise UsageError(f"--lm-weight is for language models: '{converted}' is an encoder and has no next token")
    target = Path(output) if output is not None else default_output(pair)
    check_output(target, overwrite)
    if target.resolve() == pair.student.origin.folder.resolve():
        raise UsageError(f"output '{target}' is the converted checkpoint itself: choose another --output")
    accelerator = accelerator_of(settings, cpu)
    run = _Healing(
        accelerator=accelerator,
        pair=pair,
        settings=settings,
        texts=texts,
        output=target,
        place=Workplace(target),
        progress=progress,
        warnings=left_out,
    )
    return run.run(resume, overwrite, None if tensorboard is None else Path(tensorboard), show, command)


@dataclass(kw_only=True)
class _Healing:
    accelerator: Accelerator
    pair: Pair
    settings: Settings
    texts: Texts
    output: Path
    place: Workplace
    progress: Progress
    warnings: tuple[str, ...] = ()

    def run(self, resume: bool, overwrite: bool, board: Path | None, show: Show, command: str | None) -> Healed:
        """Give all stages and the result."""
        with failures_in_words(self.place.folder):
            return self._run(resume, overwrite, board, show, command)

    def _run(self, resume: bool, overwrite: bool, board: Path | None, show: Show, command: str | None) -> Healed:
        first = self.accelerator.is_main_process
        length, processes = self._length(), self.accelerator.num_processes
        self.settings = self.settings.resolved(length, processes)
        self.settings.shares(processes)
        if first:
            self.place.begin(self.settings, self._identity(), resume, overwrite)
            self._pack(length)
        self.accelerator.wait_for_everyone()
        text = self._text()
        journal = Journal(self.place.folder / LOG if first else None, show, board)
        self._plan(text, show)
        used = self._layerwise(text, journal)
        done = self._whole(text, used, journal)
        if not first:
            self.accelerator.wait_for_everyone()
            return Healed(output=self.output, tokens=self.settings.tokens, steps=done.step if done else 0)
        healed = self._healed(text, used, done)
        self._finish(healed, overwrite, command)
        self.accelerator.wait_for_everyone()
        return healed

    def _identity(self) -> dict[str, Any]:
        """What a run that goes on must share with the one that was broken off."""
        teacher = self.pair.teacher
        return {
            "checkpoint": str(self.pair.student.origin.folder.resolve()),
            "teacher": None if teacher is None else str(teacher.origin.folder.resolve()),
            **self.texts.identity(),
        }

    def _length(self) -> int:
        """Tokens per window, or of a side of a pair."""
        asked, context = self.settings.seq_len, self.pair.context
        pairs = self._pairs
        if pairs is not None:
            pairs.check()
        longest = WINDOW if self.pair.encoder else _LONGEST_WINDOW
        if asked is not None and asked > context:
            raise UsageError(f"--seq-len is {asked}, the model reads at most {context} tokens")
        if pairs is not None:
            return asked or pairs.length(min(context, _LONGEST_WINDOW))
        return window_length(self.texts.data, asked or min(context, longest))

    def _pack(self, length: int) -> None:
        """The text into the workplace, unless it is there; a text that will not do leaves no workplace behind."""
        if self.place.has_text:
            return
        pairs = self._pairs
        try:
            if pairs is not None:
                pairs.pack(length, self.settings.tokens, self.place.folder)
            else:
                self._pack_text(length)
            self._text()
        except ConvertAttnError:
            self.place.remove()
            raise
        self.place.text_is_ready()

    @cached_property
    def _pairs(self) -> PairTexts | None:
        """The texts as pairs, of an encoder-decoder."""
        origin = self.pair.student.origin
        if not self.pair.two_stacks:
            return None
        return PairTexts(self.texts, origin.folder, origin.name, self.pair.decoder)

    def _pack_text(self, length: int) -> None:
        """The text into the workplace."""
        origin = self.pair.student.origin
        pack(
            self.texts,
            origin.folder,
            name=origin.name,
            length=length,
            tokens=self.settings.tokens,
            place=self.place.folder,
            encoder=self.pair.encoder,
        )

    def _text(self) -> Text:
        return open_text(
            self.place.folder,
            self.settings.selection_tokens,
            vocabulary=int(self.pair.config.vocab_size),
            name=self.pair.student.origin.name,
            seed=self.settings.seed,
            weights=self.texts.data_weights,
        )

    def _short(self, text: Text) -> tuple[str, ...]:
        rounds = zip(self.texts.data, text.rounds(self.settings.tokens), strict=True)
        return tuple(
            f"text '{spec}' has fewer tokens than its share of --tokens {self.settings.tokens:,}: it was read "
            f"{times:.1f} times"
            for spec, times in rounds
            if times > 1
        )

    def _plan(self, text: Text, show: Show) -> None:
        """Predict the memory and choose the micro batch by it; what does not fit leaves no new workplace behind."""
        if self.accelerator.is_main_process:
            windows = self._layer_windows(text)
            begun = planning.begun(self.place)
            try:
                predictor = Predictor.of(
                    self.accelerator,
                    self.pair,
                    settings=self.settings,
                    dtype=narrow_dtype(self.accelerator),
                    length=text.side,
                    windows=windows,
                )
                told = planning.decide(predictor, self.settings, self.place)
            except ConvertAttnError:
                if not begun:
                    self.place.remove()
                raise
            show({"stage": journals.START, "step": 0, "memory": told})
        self.settings = planning.decided(self.accelerator, self.settings, self.place)
        if planning.tight(self.place, Room.of(self.accelerator.device, self.settings.max_memory)):
            return_large_blocks()

    def _layer_windows(self, text: Text) -> int:
        """Windows for the stage over single blocks."""
        tokens = self.settings.layer_tokens()
        return max(1, tokens // text.tokens_each) if tokens else 0

    def _layerwise(self, text: Text, journal: Journal) -> int:
        """The stage over single blocks; how many windows it took: of one that ended early the share of its blocks."""
        count = self._layer_windows(text)
        if not count:
            return 0
        if self.place.last_state() is None:  # else it is done and the next stage is under way
            stage = Layerwise(
                accelerator=self.accelerator,
                pair=self.pair,
                settings=self.settings,
                windows=text.batch(0, count),
                selection=text.selection,
                place=self.place,
                journal=journal,
            )
            stage.run(self.progress)
        if self.place.has(STOPPED):
            facts = self.place.facts(STOPPED)
            return math.ceil(count * int(facts["step"]) / int(facts["blocks"]))
        return count

    def _whole(self, text: Text, used: int, journal: Journal) -> Progressed | None:
        """The stage over the whole model, if one was asked for."""
        if self.settings.whole is None:
            return None
        stage = Whole(
            accelerator=self.accelerator,
            pair=self.pair,
            settings=self.settings,
            place=self.place,
            journal=journal,
            handover=self._handover,
        )
        return stage.run(text, used, self.progress)

    @property
    def _handover(self) -> Handover:
        return Handover(self.pair, self.settings, self.place)

    def _finish(self, healed: Healed, overwrite: bool, command: str | None) -> None:
        """Write the output folder from what was kept."""
        teacher = self.pair.teacher
        label = None if teacher is None else teacher.origin.label
        tensors = self._handover.result()
        write_result(
            self.pair.student,
            Trained(frozenset(tensors), tensors.__getitem__),
            entry=describe_run(self.settings, self.texts.named(), label, healed, command),
            log=self.place.folder / LOG,
            output=self.output,
            overwrite=overwrite,
            progress=self.progress,
        )
        self.place.remove()

    def _healed(self, text: Text, used: int, done: Progressed | None) -> Healed:
        """What came of it; `used`: windows of the stage over single blocks."""
        told = self._warnings(text, done)
        found = Healed(output=self.output, tokens=used * text.tokens_each, steps=0, warnings=told)
        found = replace(found, unit="") if self.pair.encoder else found
        if done is None:
            return found
        losses = measured_losses(journals.read(self.place.folder / LOG), str(self.settings.whole), done.best_step)
        return replace(
            found,
            tokens=found.tokens + done.step * self.settings.windows_per_step * text.tokens_each,
            steps=done.step,
            start=done.start,
            best=done.best,
            perplexity=None if losses is None else (math.exp(losses[0]), math.exp(losses[1])),
        )

    def _warnings(self, text: Text, done: Progressed | None) -> tuple[str, ...]:
        """Sentences for the user on the checkpoints, the text and the stages."""
        teacher = self.pair.teacher
        found = self.pair.student.warnings() + self.warnings + self._short(text)
        pairs = self._pairs
        if pairs is not None and pairs.halved:
            found += (f"text '{pairs.halved[0]}' has no pairs: {HALVED}",)
        if done is not None and done.best == done.start:
            found += ("training made nothing better on the selection text: the weights are those it began with",)
        if self.place.has(STOPPED):
            found += (str(self.place.facts(STOPPED)["stopped"]),)
        if teacher is not None and teacher.leftovers:
            found += (leftover_warning(teacher.leftovers, plain=True),)
        return found


__all__ = ["Healed", "heal"]
