"""Small trained multi-head checkpoints that come with the package, and text to calibrate and measure on.

They make a first conversion possible without a download: ``gpt2`` and ``llama``, about a million parameters each, eight
heads, trained on the Python standard library's source by ``convert_attn.convert.samples.train``. ``heldout_text`` is
text that they have not seen; ``calibration_text`` is part of what they were trained on.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["SAMPLES", "calibration_text", "heldout_text", "sample_path"]

_FOLDER = Path(__file__).parent

SAMPLES: tuple[str, ...] = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/model.safetensors")))
"""The names of the bundled checkpoints."""


def sample_path(name: str) -> Path:
    """The folder of a bundled checkpoint, as ``AutoModelForCausalLM.from_pretrained`` takes it."""
    if name not in SAMPLES:
        raise ValueError(f"no bundled sample is named {name!r}; there are {', '.join(SAMPLES) or 'none'}")
    return _FOLDER / name


def heldout_text() -> str:
    """Standard-library modules that neither the samples nor their tokenizer saw in training."""
    return (_FOLDER / "heldout.txt").read_text(encoding="utf-8")


def calibration_text() -> str:
    """Standard-library modules from the samples' training text."""
    return (_FOLDER / "calibration.txt").read_text(encoding="utf-8")
