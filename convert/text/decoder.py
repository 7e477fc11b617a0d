"""What the decoder of an encoder-decoder begins a target with, and how its encoder reads a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.classes.decoder_start import Shift, first_token, shift_of
from convert_attn.convert.text.sounds import Sounds


@dataclass(frozen=True)
class Decoder:
    """What the targets of an encoder-decoder begin with.

    Attributes:
        start: in front of plain text.
        shift: tells it of the target of a pair.
        sounds: how the model hears, where its sources are sounds.
    """

    start: int
    shift: Shift
    sounds: Sounds | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig, auto_class: str, folder: Path, name: str) -> Decoder:
        """Of a checkpoint.

        Args:
            auto_class: of transformers, which makes its class.
            folder: with its tokenizer and feature extractor.
            name: what the user called it.
        """
        return cls(first_token(config), shift_of(config, auto_class, name), Sounds.of(config, folder, name))

    def reading(self, spec: str) -> Callable[[str], list[int]] | None:
        """Give what makes numbers of a source of this text; None: the tokenizer.

        Raises:
            ConvertAttnError: see `Sounds.of_text`.
        """
        return None if self.sounds is None else self.sounds.of_text(spec)
