"""The stage over the whole model: both models loaded, tried, given what the stage before has learned, and trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from convert_attn.convert.heal.data.tokens import Text
from convert_attn.convert.heal.loss.halves import Halves
from convert_attn.convert.heal.loss.objective import attach
from convert_attn.convert.heal.memory.planning import check_whole_logits
from convert_attn.convert.heal.state.journal import Journal
from convert_attn.convert.heal.state.pair import Pair, learns, load_model, share_frozen
from convert_attn.convert.heal.state.settings import Settings
from convert_attn.convert.heal.state.workplace import Workplace
from convert_attn.convert.heal.training.compiled import compile_blocks
from convert_attn.convert.heal.training.handover import Handover
from convert_attn.convert.heal.training.loop import Progressed, Training
from convert_attn.convert.heal.training.lora import adapt
from convert_attn.convert.progress import Progress


def narrow_dtype(accelerator: Accelerator) -> torch.dtype:
    """Of what is not trained: under mixed precision as narrow as the arithmetic."""
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return narrow.get(accelerator.mixed_precision, torch.float32)


def _leave_out_heads(student: Any, tokens: Tensor) -> None:
    """Of an encoder train only what its last hidden states depend on: no pooler, no head of a task.

    Args:
        tokens: [B, T] to find that out with.
    """
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        states = student.base_model(input_ids=tokens.to(student.device)).last_hidden_state
        gradients = torch.autograd.grad(states.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


@dataclass(kw_only=True)
class Whole:
    """The stage."""

    accelerator: Accelerator
    pair: Pair
    settings: Settings
    place: Workplace
    journal: Journal
    handover: Handover

    def run(self, text: Text, used: int, progress: Progress) -> Progressed:
        """Train on all the tokens but `used` windows.

        Raises:
            ConvertAttnError: a model cannot be loaded, its logits do not fit, or the training fails.
        """
        teacher = None if self.pair.teacher is None else load_model(self.pair.teacher, narrow_dtype(self.accelerator))
        if teacher is not None:
            teacher.to(self.accelerator.device)
        theirs = None if teacher is None else Halves(teacher, self.pair.encoder)
        student = load_model(self.pair.student, torch.float32)
        self._try_out(text, attach(student, self.pair.encoder), *([] if theirs is None else [theirs]))
        start, entry = self.handover.begin(self.accelerator, student, theirs, text, self.journal)
        student = self._marked(student)
        if self.pair.encoder:
            _leave_out_heads(student, text.selection[:1])
        if teacher is not None and self.accelerator.distributed_type != DistributedType.FSDP:
            share_frozen(student, teacher)
        if self.settings.torch_compile:
            compile_blocks(*(model for model in (student, teacher) if model is not None))
        training = Training(
            accelerator=self.accelerator,
            settings=self.settings,
            student=student,
            teacher=theirs,
            text=text,
            first=used,
            tokens=self.settings.tokens - used * text.tokens_each,
            hidden_size=int(self.pair.config.hidden_size),
            place=self.place,
            journal=self.journal,
            entry=entry,
            done=Progressed(start=start),
        )
        done = training.run(progress)
        self.accelerator.free_memory()  # (it holds on to the model and its optimizer)
        return done

    def _try_out(self, text: Text, student: Halves, *teacher: Halves) -> None:
        """Find out which of the models come apart; one whose wrapper lets nobody in stays whole.

        Raises:
            ConvertAttnError: logits of a whole forward call do not fit.
        """
        for halves in (student, *teacher):
            halves.try_out(text.selection)
        kind = self.accelerator.distributed_type
        sharded = kind == DistributedType.FSDP and not self.accelerator.is_fsdp2
        student.together = student.together or sharded or kind == DistributedType.DEEPSPEED
        if student.whole or any(halves.whole for halves in teacher):
            rows = text.side * (self.settings.micro_batch_size or 1)
            check_whole_logits(rows, student.vocabulary, self.accelerator.device)

    def _marked(self, student: Any) -> Any:
        """What is to be trained, marked; the rest as narrow as the arithmetic."""
        if self.settings.lora_rank is not None:
            student = adapt(student, self.settings.lora_rank)
        else:
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(learns(name, self.settings.learned))
        for parameter in student.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(narrow_dtype(self.accelerator))
        return student
