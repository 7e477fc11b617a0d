"""Small trained multi-head checkpoints that come with the package, and text to calibrate and measure on.

They make a first conversion possible without a download: ``gpt2`` and ``llama``, about a million parameters each, eight
heads, trained on the Python standard library's source by ``convert_attn.convert.samples.making.train``.
``heldout_text`` is text that they have not seen; ``calibration_text`` is part of what they were trained on.

``general_text`` is for models of any other kind: short documents in English and other languages, code and manuals, as
language models are pre-trained on; ``general_heldout_text`` is more of the same, to measure on.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "SAMPLES",
    "calibration_text",
    "general_heldout_text",
    "general_text",
    "heldout_text",
    "sample_path",
]

_FOLDER = Path(__file__).parent

SAMPLES: tuple[str, ...] = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/model.safetensors")))
"""The names of the bundled checkpoints."""


def sample_path(name: str) -> Path:
    """Give the folder of a bundled checkpoint, as ``AutoModelForCausalLM.from_pretrained`` takes it."""
    if name not in SAMPLES:
        raise ValueError(f"no bundled sample is named {name!r}; there are {', '.join(SAMPLES) or 'none'}")
    return _FOLDER / name


def heldout_text() -> str:
    """Standard-library modules that neither the samples nor their tokenizer saw in training."""
    return (_FOLDER / "heldout.txt").read_text(encoding="utf-8")


def calibration_text() -> str:
    """Standard-library modules from the samples' training text."""
    return (_FOLDER / "calibration.txt").read_text(encoding="utf-8")


def general_text() -> str:
    """Documents of many kinds and languages, parted by lines that are ``<|endoftext|>`` as `read_documents` takes them.

    Their sources and licences are in ``GENERAL-LICENSES.md``.
    """
    return (_FOLDER / "general.txt").read_text(encoding="utf-8")


def general_heldout_text() -> str:
    """Other documents of the same kinds; no paragraph of them is in `general_text`."""
    return (_FOLDER / "general-heldout.txt").read_text(encoding="utf-8")
