"""Sounds, which some encoders read: WAV files that a text of pairs names, and what their model's own extractor makes of
them.

In a window a sound takes as many numbers as the encoder gives states for one: the bytes of what tells its file from
others, and `SILENCE` behind them.
"""

from __future__ import annotations

import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoFeatureExtractor
from transformers.configuration_utils import PreTrainedConfig

from convert_attn.convert.errors import ConvertAttnError, first_line

SILENCE = 256
_LOUDEST = 1 << 15  # what a sample of 16 bits is a share of
EXPECTED = "a .jsonl file of pairs, each line with 'source', the path of a WAV file, and 'target', what is said in it"


@dataclass(frozen=True)
class Sounds:
    """How a model hears.

    Attributes:
        folder: the checkpoint's, for its feature extractor.
        name: what the user called it.
        bins: numbers of a frame that the encoder is given.
        states: how many states it gives for a sound, whatever the sound's length, of two frames each.
    """

    folder: Path
    name: str
    bins: int
    states: int

    @classmethod
    def of(cls, config: PreTrainedConfig, folder: Path, name: str) -> Sounds | None:
        """Give how the model of a config hears; None where it reads tokens."""
        bins: int | None = getattr(config, "num_mel_bins", None)
        return None if bins is None else cls(folder, name, bins, int(config.max_source_positions))

    def numbers(self, file: Path, within: Path) -> list[int]:
        """Give what stands for a sound in a window: `states` numbers.

        Args:
            file: relative to a folder, which it must not lead out of.
            within: that folder.

        Raises:
            ConvertAttnError: no such file there, no WAV file of one channel, 16 bits and the rate of the model's
                extractor, or a sound longer than the model hears.
        """
        path = _inside(file, within)
        extractor = _extractor(self.folder, self.name)
        with _opened(path, extractor.sampling_rate) as sound:
            length, most = sound.getnframes() / sound.getframerate(), extractor.n_samples / extractor.sampling_rate
        if not length:
            raise ConvertAttnError(f"sound '{path}' is empty: leave it out")
        if length > most:
            raise ConvertAttnError(
                f"sound '{path}' has {length:.1f} seconds and '{self.name}' hears at most {most:.0f}: cut it, and its "
                "target with it"
            )
        told = _identity(path)
        if len(told) > self.states:
            raise ConvertAttnError(
                f"the path of sound '{path}' is longer than {self.states} bytes: put the sounds into a folder nearer "
                "to the root"
            )
        return [*told, *[SILENCE] * (self.states - len(told))]

    def features(self, sources: Tensor) -> Tensor:
        """Give what the encoder reads of sounds [B, states]: [B, bins, 2 states].

        Raises:
            ConvertAttnError: a file was changed since it was looked at, or the extractor is another model's.
        """
        extractor = _extractor(self.folder, self.name)
        rate = int(extractor.sampling_rate)
        heard = [_samples(_known(row), rate) for row in sources.tolist()]
        found: Tensor = extractor(heard, sampling_rate=rate, return_tensors="pt")["input_features"]
        wanted = (self.bins, 2 * self.states)
        if tuple(found.shape[1:]) != wanted:
            raise ConvertAttnError(
                f"the feature extractor of '{self.name}' gives {list(found.shape[1:])} numbers for a sound and its "
                f"encoder reads {list(wanted)}: its preprocessor_config.json is another model's"
            )
        return found.float()

    def of_text(self, spec: str) -> Callable[[str], list[int]]:
        """Give what reads the source of a pair: the path of a sound, from the text's own folder.

        Raises:
            ConvertAttnError: the text is no file. At the call; see `numbers` for the rest.
        """
        path = Path(spec).expanduser()
        if not path.is_file():
            raise ConvertAttnError(
                f"'{self.name}' reads sounds and text '{spec}' is no file whose folder could hold them: give {EXPECTED}"
            )
        return lambda source: self.numbers(Path(source), path.parent)


def sounds_of(model: Any) -> Sounds | None:
    """Give how a model that was loaded from a folder hears; None where it reads tokens."""
    folder = str(model.config.name_or_path)
    return Sounds.of(model.config, Path(folder), folder)


def read_source(model: Any, source: Tensor) -> dict[str, Tensor]:
    """Give what an encoder is called with for sources [B, S], of tokens or of sounds, filled up by what is below 0."""
    sounds = sounds_of(model)
    if sounds is not None:
        weights = next(model.parameters())
        return {"input_features": sounds.features(source).to(source.device, weights.dtype)}
    return {"input_ids": source.clamp_min(0), "attention_mask": (source >= 0).long()}


def _inside(file: Path, within: Path) -> Path:
    try:
        path = (within / file).resolve()
        if path.is_relative_to(within.resolve()) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):  # names that no file can have, links in a circle
        pass
    raise ConvertAttnError(
        f"source '{file}' is no file in '{within}': the model reads sounds, each a WAV file in the folder of the text "
        "or below it"
    )


@lru_cache
def _extractor(folder: Path, name: str) -> Any:
    try:
        return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a broken or missing one raises
        raise ConvertAttnError(
            f"'{name}' has no feature extractor that can be loaded ({first_line(error)}): sounds are read by it; put "
            "preprocessor_config.json into its folder"
        ) from None


def _opened(path: Path, rate: int) -> wave.Wave_read:
    wanted = f"expected one channel of 16 bits at {rate:,} Hz: convert it first"
    try:
        sound = wave.open(str(path), "rb")  # noqa: SIM115 - the caller closes it
    except (wave.Error, EOFError, OSError) as error:
        raise ConvertAttnError(f"sound '{path}' cannot be read as WAV with PCM samples ({error}): {wanted}") from None
    found = sound.getnchannels(), 8 * sound.getsampwidth(), sound.getframerate()
    if found != (1, 16, rate):
        sound.close()
        raise ConvertAttnError(
            f"sound '{path}' has {found[0]} channel{'s' * (found[0] != 1)} of {found[1]} bits at {found[2]:,} Hz, "
            f"{wanted}"
        )
    return sound


def _samples(path: Path, rate: int) -> NDArray[np.float32]:
    """From -1 to 1, [samples]."""
    with _opened(path, rate) as sound:
        raw = sound.readframes(sound.getnframes())
    return np.frombuffer(raw[: len(raw) // 2 * 2], dtype="<i2").astype(np.float32) * np.float32(1 / _LOUDEST)


def _identity(path: Path) -> bytes:
    """What tells a file from others, and from itself after a change."""
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns} {path}".encode()


def _known(numbers: list[int]) -> Path:
    """The file that numbers stand for."""
    told = bytes(number for number in numbers if number < SILENCE)
    path = Path(told.split(b" ", 2)[2].decode())
    if not path.is_file() or _identity(path) != told:
        raise ConvertAttnError(f"sound '{path}' was changed or taken away since the text was read: start again")
    return path


__all__ = ["EXPECTED", "Sounds", "read_source", "sounds_of"]
