"""What a run of `heal` is asked to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypedDict

from convert_attn.convert.errors import UsageError

LAYERWISE, DISTILL, UPTRAIN = "layerwise", "distill", "uptrain"
STAGES = (LAYERWISE, DISTILL, UPTRAIN)
DEFAULT_STAGES = (LAYERWISE, DISTILL)
_RATE = 0.05  # / hidden size: 2e-4 at 256, 1.2e-5 at 4096; what AdamW bears shrinks as models widen
_NOISE = 1e-6  # nats per token: a KL that float32 gives two models that compute the same
_FAR = 0.1  # nats per token: from here on the rate is the full one
_LAYER_RATE = 0.25  # / hidden size, for single blocks: they are near their goal and bear more
_STEP_TOKENS, _STEP_WINDOWS = 4096, 8
_STEPS = 250  # a run over few tokens takes smaller steps, so that there are about as many
_HALF = 0.5  # of the tokens, for single blocks
_COUNTS = (
    "tokens",
    "lora_rank",
    "batch_size",
    "micro_batch_size",
    "eval_every",
    "save_every",
    "patience",
    "max_memory",
)
_CHANGEABLE = frozenset({"save_every", "micro_batch_size", "gradient_checkpointing", "torch_compile", "max_memory"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command line, in the field's names.

    Attributes:
        tokens: to train on, all stages together.
        stages: of `STAGES`, in this order.
        layer_share: of the tokens, for the stage "layerwise" where another one follows; None: half of them, but where
            none of the first three blocks loses 5 % of its error on the selection text the stage ends there, and what
            the other blocks would have read goes to the next stage.
        layer_inputs: "student" or "original": what the blocks read in "layerwise".
        train: "attention", "gate" (of a mixture of layers) or "all": which parameters learn.
        lora_rank: of adapters on the attention's projections in their place; None: the projections themselves.
        lr: highest learning rate of the whole model's training; None: 0.05 / hidden size, for distillation alone times
            KL / 0.1 where the KL to the original is below 0.1 nats as it begins; less for small steps.
        layer_lr: that of the stage "layerwise"; None: 0.25 / hidden size, a quarter of it and a quarter of that for
            blocks that get no better.
        batch_size: windows per step, over all processes; None: 4096 tokens or 8 windows, what is more, but fewer where
            the tokens would not last for some 250 steps, rounded up to a multiple of the processes.
        micro_batch_size: windows per forward call and process; None: all that a process has of a step, or as many of
            them as the memory holds.
        seq_len: tokens per window; None: what the model reads, at most 2048.
        temperature: of both distributions in the distillation's KL.
        hidden_weight, lm_weight: of the hidden states' error and of the language-model loss beside the KL.
        eval_every, save_every: steps; None: a twentieth of the run, more where it has less than twenty times the
            selection text.
        gradient_checkpointing: activations are computed again; where False, that is done all the same if the memory
            would not hold them, or if they would take more than all else and more than 1 GB.
        torch_compile: blocks of both models are compiled by torch.compile for the whole model's training.
        max_memory: bytes that a process may take, on its device; None: what is free.
        patience: measurements on selection text without a better one before it stops; None: it goes on to the end, as
            much is won while the rate falls.
    """

    tokens: int
    stages: tuple[str, ...] = DEFAULT_STAGES
    layer_share: float | None = None
    layer_inputs: str = "student"
    train: str = "all"
    lora_rank: int | None = None
    lr: float | None = None
    layer_lr: float | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    seq_len: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    hidden_weight: float = 0.0
    lm_weight: float = 0.0
    selection_tokens: int = 16384
    eval_every: int | None = None
    save_every: int | None = None
    patience: int | None = None
    mixed_precision: str = "auto"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    max_memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_stages()
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{_option(name)} is {value}, expected at least 1")
        for name in ("lr", "layer_lr", "temperature", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"--{_option(name)} is {value}, expected a number above 0")
        for name in ("hidden_weight", "lm_weight", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"--{_option(name)} is {value}, expected a number of at least 0")
        for name in ("warmup", "layer_share"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise UsageError(f"--{_option(name)} is {share}, expected a share from 0 to below 1")
        if self.seq_len is not None and self.seq_len < 2:
            raise UsageError(f"--seq-len is {self.seq_len}, expected at least 2")
        if self.selection_tokens < 2:
            raise UsageError(f"--selection-tokens is {self.selection_tokens}, expected at least 2")

    def _check_stages(self) -> None:
        if not self.stages or any(stage not in STAGES for stage in self.stages):
            raise UsageError(f"--stages is '{','.join(self.stages)}', expected one or more of {', '.join(STAGES)}")
        if tuple(dict.fromkeys(self.stages)) != self.stages or (DISTILL in self.stages and UPTRAIN in self.stages):
            raise UsageError(f"--stages is '{','.join(self.stages)}': give layerwise, then distill or uptrain, or one")
        if LAYERWISE in self.stages[1:]:
            raise UsageError("--stages: layerwise comes first, as it starts from the original's inputs")
        if self.train not in ("attention", "gate", "all"):
            raise UsageError(f"--train is '{self.train}', expected attention, gate or all")
        if self.train == "gate" and (LAYERWISE in self.stages or self.lora_rank is not None):
            raise UsageError(
                "--train gate trains what is behind the blocks: give --stages uptrain (or distill), and no --lora-rank"
            )
        if self.layer_inputs not in ("student", "original"):
            raise UsageError(f"--layer-inputs is '{self.layer_inputs}', expected student or original")
        if self.lora_rank is not None and self.stages[-1] == LAYERWISE:
            raise UsageError("--lora-rank is for distill and uptrain: drop it, or add one of them to --stages")

    @property
    def learned(self) -> str:
        """ "attention", "gate" or "all": what may change; adapters are on the attention alone."""
        return self.train if self.lora_rank is None else "attention"

    @property
    def whole(self) -> str | None:
        """The stage that trains the whole model, if there is one."""
        return self.stages[-1] if self.stages[-1] != LAYERWISE else None

    def layer_tokens(self) -> int:
        """Give tokens for the stage "layerwise"."""
        if LAYERWISE not in self.stages:
            return 0
        share = _HALF if self.layer_share is None else self.layer_share
        return self.tokens if self.whole is None else int(self.tokens * share)

    @property
    def layers_must_gain(self) -> bool:
        """Whether the stage "layerwise" ends early where its first blocks gain little."""
        return self.layer_share is None and self.whole is not None

    def resolved(self, length: int, processes: int) -> Settings:
        """With the batch size that windows of this length and so many processes have by default."""
        if self.batch_size is not None:
            return self
        windows = min(_full_step(length), max(1, round(self.tokens / (_STEPS * length))))
        return replace(self, batch_size=math.ceil(windows / processes) * processes)

    @property
    def windows_per_step(self) -> int:
        """Over all processes, of settings that are resolved."""
        assert self.batch_size is not None
        return self.batch_size

    def shares(self, processes: int) -> tuple[int, int]:
        """Give windows of a step for each process, and of each of its forward calls.

        Raises:
            UsageError: they do not divide.
        """
        windows = self.windows_per_step
        if windows % processes:
            raise UsageError(f"--batch-size is {windows} windows for {processes} processes: give a multiple of these")
        own = windows // processes
        micro = min(self.micro_batch_size or own, own)
        if own % micro:
            raise UsageError(
                f"--micro-batch-size is {micro}, but each process has {own} windows of a step: give a divisor of that"
            )
        return own, micro

    def rate(self, hidden: int, length: int, entry: float) -> float:
        """Give the highest learning rate of the whole model's training.

        Args:
            length: tokens per window: smaller steps, whose gradients have more noise, are shorter by its square root.
            entry: KL to the original as it begins: AdamW's steps keep a student as far from its goal as they are long,
                so that one that is near needs short ones. The text's own loss has no such nearness.

        Raises:
            UsageError: there is nothing to learn: the KL is what rounding leaves.
        """
        if self.whole != UPTRAIN and not self.lm_weight and not self.lr and entry < _NOISE:
            raise UsageError(
                f"there is nothing to heal: the KL to the original is {max(0.0, entry):.1g} nats per token, which is "
                "rounding; use the conversion as it is, or give --lm-weight or --lr to train it all the same"
            )
        near = 1.0 if self.whole == UPTRAIN or self.lm_weight else min(1.0, entry / _FAR)
        small = min(1.0, math.sqrt(self.windows_per_step / _full_step(length)))
        return self.lr or near * small * _RATE / hidden

    def layer_rates(self, hidden: int) -> tuple[float, ...]:
        """Give highest learning rates of the stage "layerwise", to be tried until one makes a block better."""
        return (self.layer_lr,) if self.layer_lr else tuple(_LAYER_RATE / hidden / part for part in (1, 4, 16))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"stages": [*self.stages]}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Give the options, as typed, in which an earlier run differs and that a run cannot change on its way."""
        own = self.as_dict()
        names = (field.name for field in fields(self) if field.name not in _CHANGEABLE)
        return [f"--{_option(name)}" for name in names if own[name] != other.get(name)]


class HealOptions(TypedDict, total=False):
    """The fields of `Settings` that `heal` takes as they are: for editors and type checkers."""

    layer_share: float | None
    layer_inputs: Literal["student", "original"]
    train: Literal["attention", "gate", "all"]
    lora_rank: int | None
    lr: float | None
    layer_lr: float | None
    batch_size: int | None
    micro_batch_size: int | None
    seq_len: int | None
    warmup: float
    weight_decay: float
    max_grad_norm: float
    temperature: float
    hidden_weight: float
    lm_weight: float
    selection_tokens: int
    eval_every: int | None
    save_every: int | None
    patience: int | None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"]
    gradient_checkpointing: bool
    torch_compile: bool
    max_memory: int | None
    seed: int


def _full_step(length: int) -> int:
    """Windows in a step of a run over many tokens."""
    return max(_STEP_WINDOWS, _STEP_TOKENS // length)


def _option(name: str) -> str:
    return name.replace("_", "-")
