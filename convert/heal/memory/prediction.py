"""What a run takes at its peak, known before it begins: the micro batch is chosen by it, or the run refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate import Accelerator, init_empty_weights
from accelerate.utils import DistributedType
from torch import nn
from transformers.pytorch_utils import Conv1D

from convert_attn.convert.archs import architectures
from convert_attn.convert.calibration.calibrate import IN_MEMORY
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.class_facts import typed_config
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.heal.loss.chunks import chunk_bytes
from convert_attn.convert.heal.memory.activations import Activations, measure_block
from convert_attn.convert.heal.state.pair import Pair, learns
from convert_attn.convert.heal.state.settings import Settings

_FLOAT = 4  # bytes
_AMPLE = 10**9  # bytes of activations that are no reason for computing them again


@dataclass(frozen=True)
class Needs:
    """Bytes that one process takes.

    Attributes:
        weights: of teacher and student.
        learning: gradients and the optimizer's states.
        passing: activations and logits of a forward call, on their highest beside the above.
        other: where it is higher, another moment: a stage over single blocks, or the models being loaded.
    """

    weights: int
    learning: int
    passing: int
    other: int

    @property
    def peak(self) -> int:
        """The highest of all moments."""
        return max(self.weights + self.learning + self.passing, self.other)


@dataclass(frozen=True)
class MemoryPlan:
    """How a run goes about it.

    Attributes:
        micro: windows per forward call.
        checkpointing: whether activations are computed again.
    """

    micro: int
    checkpointing: bool
    needs: Needs

    def sentence(self, already: int, free: int, holes: int) -> str:
        """For the user; bytes that the process holds `already`, that are `free`, that a heap keeps as `holes`."""
        needs, again = self.needs, ", activations computed again" if self.checkpointing else ""
        kept = f", freed but kept {giga(holes)}" if holes else ""
        return (
            f"Memory at the peak, predicted: {giga(already + needs.peak + holes)} (weights {giga(needs.weights)}, "
            f"gradients and optimizer {giga(needs.learning)}, activations and logits {giga(needs.passing)}{kept}, what "
            f"runs already {giga(already)}); {giga(free)} are free. {_windows(self.micro)} at a time{again}."
        )


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters.

    Attributes:
        teacher: in all, 0 without one.
        student: in all.
        trained: of the student's, adapters included.
        apart: frozen ones of the student that differ from the teacher's.
        block: of the largest decoder block.
        table: of the trained embeddings or head, where they are; they have gradients beside the others'.
        outside: of what belongs to no block.
    """

    teacher: int
    student: int
    trained: int
    apart: int
    block: int
    table: int
    outside: int

    @classmethod
    def of(cls, pair: Pair, settings: Settings) -> ParameterCounts:
        """From the classes, without weights."""
        model = _empty(pair.student)
        named = dict(model.named_parameters())
        rank, learned = settings.lora_rank, settings.learned
        trained = {name for name in named if learns(name, learned)} if rank is None else set[str]()
        count = sum(named[name].numel() for name in trained)
        if rank is not None:
            linear = (m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and learns(n, learned))
            count = sum(rank * sum(layer.weight.shape) for layer in linear)
        blocks: dict[str, int] = {}
        for name, parameter in named.items():
            number = next((part for part in name.split(".") if part.isdigit()), "")
            blocks[number] = blocks.get(number, 0) + parameter.numel()
        table = max((named[name].numel() for name in trained), default=0) if learned == "all" else 0
        total, outside = sum(blocks.values()), blocks.pop("", 0)
        theirs = 0 if pair.teacher is None else sum(p.numel() for p in _empty(pair.teacher).parameters())
        frozen = sum(p.numel() for n, p in named.items() if n not in trained and (not theirs or learns(n, "attention")))
        return cls(
            teacher=theirs,
            student=total,
            trained=count,
            apart=frozen,
            block=max(blocks.values(), default=0),
            table=table,
            outside=outside,
        )


def layer_count(config: Any) -> int:
    """Count the blocks of a model; of an encoder-decoder those of both stacks, each taken for one of the decoder."""
    own = int(config.num_hidden_layers)
    arch = architectures().get(config.model_type)
    return own if arch is None or arch.cross is None else own + int(getattr(config, arch.cross.layers))


def _empty(source: Source) -> Any:
    with init_empty_weights():
        auto = getattr(transformers, source.auto_class)
        model: Any = auto.from_config(typed_config(source.config, source.origin.name))
    model.tie_weights()
    return model


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """All that a prediction is made of.

    Args:
        dtype: of what is not trained.
        windows: for a stage over single blocks, 0 without one.
    """

    settings: Settings
    sizes: ParameterCounts
    block: Activations
    layers: int
    hidden: int
    vocabulary: int
    length: int
    windows: int
    dtype: torch.dtype
    device: torch.device
    shards: int
    own: int

    @classmethod
    def of(
        cls, accelerator: Accelerator, pair: Pair, *, settings: Settings, dtype: torch.dtype, length: int, windows: int
    ) -> Predictor:
        """For a run; one block is run for it.

        Raises:
            ConvertAttnError: a class cannot be made.
        """
        config = pair.config
        processes = accelerator.num_processes
        sharded = accelerator.distributed_type == DistributedType.FSDP
        return cls(
            settings=settings,
            sizes=ParameterCounts.of(pair, settings),
            block=measure_block(accelerator, pair.student, settings.learned, length),
            layers=layer_count(config),
            hidden=int(config.hidden_size),
            vocabulary=int(config.hidden_size if pair.encoder else config.vocab_size),
            length=length,
            windows=windows,
            dtype=dtype,
            device=accelerator.device,
            shards=processes if sharded else 1,
            own=settings.shares(processes)[0],
        )

    def needs(self, micro: int, checkpointing: bool) -> Needs:
        """With so many windows per forward call."""
        sizes, narrow = self.sizes, self.dtype.itemsize
        if self.settings.whole is None:
            return Needs(0, 0, 0, self._single_blocks(micro))
        teacher, trained = narrow * sizes.teacher, _FLOAT * sizes.trained // self.shards
        weights = teacher + trained + narrow * sizes.apart
        states = _FLOAT * micro * self.length * self.hidden
        block, goal = self.block.of(micro), self.settings
        kept = self.layers * (states if checkpointing else block) + block
        if goal.hidden_weight:
            kept += (2 + checkpointing) * self.layers * states
        table = _FLOAT * sizes.table
        forward = kept + 4 * states + chunk_bytes(self.vocabulary, micro * self.length, self.device) + 2 * table
        forward += trained if micro < self.own else 0
        step = trained * (1 if self.device.type == "cpu" else 2)  # elsewhere all parameters take their step at once
        passing = max(forward, trained + block + 2 * table, step) - trained
        loaded = teacher + _FLOAT * sizes.student
        return Needs(weights, 3 * trained, max(0, passing), max(loaded, self._single_blocks(micro)))

    def _single_blocks(self, micro: int) -> int:
        """Bytes of the stage over single blocks: the weights of two, one's learning, the text's states."""
        if not self.windows:
            return 0
        states = _FLOAT * self.windows * self.length * self.hidden
        work = self.block.of(micro) * 2
        learning = 6 * _FLOAT * self.sizes.block
        return 3 * min(states, IN_MEMORY) + max(learning + work, _FLOAT * self.sizes.outside + work)

    def plans(self) -> Iterator[MemoryPlan]:
        """Tell what could be done, that which takes least time first."""
        settings, own = self.settings, self.own
        sizes = [n for n in range(own, 0, -1) if own % n == 0]
        if settings.micro_batch_size is not None:
            sizes = [min(settings.micro_batch_size, own)]
        for again in [True] if settings.gradient_checkpointing else [False, True]:
            for micro in sizes:
                yield MemoryPlan(micro, again, self.needs(micro, again))

    def choose(self, room: int, named: str) -> MemoryPlan:
        """Give the first plan that fits, activations within bounds if one such does.

        Args:
            room: bytes.
            named: where they are, for the message.

        Raises:
            ConvertAttnError: none fits.
        """
        fitting = [plan for plan in self.plans() if plan.needs.peak <= room]
        for plan in fitting:
            needs = plan.needs
            if needs.passing <= max(_AMPLE, needs.weights + needs.learning):
                return plan
        if fitting:
            return fitting[-1]
        least = min(self.plans(), key=lambda plan: plan.needs.peak)
        needs = least.needs
        raise ConvertAttnError(
            f"healing takes {giga(needs.peak)} at its peak (weights {giga(needs.weights)}, gradients and optimizer "
            f"{giga(needs.learning)}, activations and logits {giga(needs.passing)}) even with "
            f"{_windows(least.micro)} of {self.length} tokens at a time and activations computed again, and {named} "
            f"has {giga(room)} for it: {self._remedies(least)}"
        )

    def _remedies(self, least: MemoryPlan) -> str:
        """What would make it less."""
        settings, ways = self.settings, []
        if settings.learned == "all" and settings.whole is not None:
            ways += ["--train attention", "--lora-rank 16"]
        elif settings.lora_rank is None and settings.whole is not None:
            ways.append("--lora-rank 16")
        if self.dtype == torch.float32 and settings.whole is not None:
            ways.append("--mixed-precision bf16")
        if least.micro > 1:
            ways.append("a smaller --micro-batch-size")
        if 2 * least.needs.passing > least.needs.peak:
            ways.append("a smaller --seq-len")
        return f"give {' or '.join(', '.join([*ways, 'more memory']).rsplit(', ', 1))}"


def _windows(count: int) -> str:
    return f"{count} window{'s' * (count != 1)}"


def giga(count: int) -> str:
    """Give bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
