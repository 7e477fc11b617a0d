"""What is written beside the samples' weights: their figures, model cards, texts and the texts' licence."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from convert_attn.convert.samples.making.corpus import CONTEXT, VOCABULARY, Corpus, calibration_modules, excerpt

LICENCE_FILE = "LICENSE-PYTHON.txt"


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """What the training depends on besides the text and the architecture."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    seed: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class CardQuality:
    """A model beside the unigram model, on the same held-out tokens; cross-entropies in nats per token."""

    tokens: int
    cross_entropy: float
    perplexity: float
    unigram_cross_entropy: float
    unigram_perplexity: float

    @property
    def times_better(self) -> float:
        return self.unigram_perplexity / self.perplexity


def training_record(
    model: PreTrainedModel,
    corpus: Corpus,
    *,
    stream: Tensor,
    quality: CardQuality,
    recipe: TrainingRecipe,
    seconds: float,
) -> dict[str, Any]:
    """Tell what training.json holds."""
    return {
        "heldout": {**asdict(quality), "times_better": quality.times_better},
        "parameters": model.num_parameters(),
        "recipe": asdict(recipe),
        "seconds": round(seconds, 1),
        "tokens_in_training_text": len(stream),
        "tokens_seen": recipe.steps * recipe.batch * CONTEXT,
        "training_modules": len(corpus.training),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language:
- code
- en
tags:
- {name}
- python
- convert-attn
---

# A small {title} for trying attention conversions

A sample checkpoint of `convert-attn`: {layers} layers, width {width}, {heads} attention heads of {head_dim}
(plain multi-head attention), tied embeddings, context {context}, {parameters:,} parameters in fp16. It is
large enough to have learned something that a conversion can spoil, and of no other use.

It was trained on the source of CPython {python}'s standard library ({modules} modules, {text_tokens:,} tokens
of a byte-level BPE with {vocabulary} entries, itself trained on that text): {steps:,} steps of
{batch} x {context} tokens, {seen:,} tokens in all, in {minutes:.0f} minutes on {threads} CPU thread{s}. Test
suites, tables, and the modules that the figures below are measured on were left out.

| on the held-out modules, {measured:,} tokens | cross-entropy, nats per token | perplexity |
|---|---|---|
| this model | {ours:.4f} | {ours_perplexity:.2f} |
| unigram model of the training text, add-one smoothed | {unigram:.4f} | {unigram_perplexity:.1f} |

Measured in non-overlapping windows of {context} tokens, on every token but the first of each window, with the
stored fp16 values and computing in fp32. `training.json` has the same figures, the recipe and the versions.

Made by `python -m convert_attn.convert.samples.making.train --only {name} --threads {threads}`.
"""


def card(name: str, model: PreTrainedModel, record: dict[str, Any]) -> str:
    """Give the checkpoint's README.md."""
    config, heldout, recipe = model.config, record["heldout"], record["recipe"]
    return CARD.format(
        name=name,
        title={"gpt2": "GPT-2", "llama": "Llama"}[name],
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        context=CONTEXT,
        vocabulary=VOCABULARY,
        parameters=record["parameters"],
        python=record["versions"]["python"],
        modules=record["training_modules"],
        text_tokens=record["tokens_in_training_text"],
        steps=recipe["steps"],
        batch=recipe["batch"],
        seen=record["tokens_seen"],
        minutes=record["seconds"] / 60,
        threads=recipe["threads"],
        s="" if recipe["threads"] == 1 else "s",
        measured=heldout["tokens"],
        ours=heldout["cross_entropy"],
        ours_perplexity=heldout["perplexity"],
        unigram=heldout["unigram_cross_entropy"],
        unigram_perplexity=heldout["unigram_perplexity"],
    )


OVERVIEW = """\
# Sample checkpoints

`heldout.txt` and `calibration.txt` are excerpts of the CPython {python} standard library, passed on under its
licence, the PSF License Agreement, which is in `{licence}`:

> {notice}

Each module stands in them whole and unchanged (but for blank lines at its end), after a line `# Lib/<path>`.

- `heldout.txt` ({heldout_bytes:,} bytes), which neither the models nor their tokenizer saw:
  {heldout}.
- `calibration.txt` ({calibration_bytes:,} bytes), a part of the training text:
  {calibration}.

The two checkpoints, `gpt2/` and `llama/`, are plain multi-head models with about a million parameters each. They
were trained on the rest of that library; their model cards say how, and how well they do on `heldout.txt`. They
are this project's own, under its licence. The recipe was chosen on modules that were not trained on either:
{selection}.

Everything here but the Python files was made, on CPython {python}, by

    {command}

Another Python has another standard library, hence other texts and other models.
"""


def listed(modules: dict[str, str]) -> str:
    """Module paths, as prose."""
    return ", ".join(f"`{name}`" for name in modules)


def python_licence(root: Path) -> str:
    """The licence that the excerpts are passed on under: this Python's own, or the bundled copy where it has none."""
    own, bundled = root / "LICENSE.txt", Path(__file__).parent / LICENCE_FILE
    return (own if own.is_file() else bundled).read_text(encoding="utf-8")


def psf_notice(licence: str) -> str:
    """Give the PSF's notice of copyright, as its licence agreement asks for it to be retained."""
    words = " ".join(licence.split())
    found = re.search(r"Copyright \(c\) 2001[^;]*Python Software Foundation; All Rights Reserved", words)
    return found.group() if found else "Copyright (c) 2001 Python Software Foundation; All Rights Reserved"


def write_texts(corpus: Corpus, root: Path, output: Path, command: str) -> None:
    """The two excerpts, the licence they are under, and the README that says what they are."""
    heldout, calibration = excerpt(corpus.heldout), excerpt(calibration_modules(corpus.training))
    (output / "heldout.txt").write_text(heldout, encoding="utf-8", newline="\n")
    (output / "calibration.txt").write_text(calibration, encoding="utf-8", newline="\n")
    licence = python_licence(root)
    (output / LICENCE_FILE).write_text(licence, encoding="utf-8", newline="\n")
    overview = OVERVIEW.format(
        python=platform.python_version(),
        licence=LICENCE_FILE,
        notice=psf_notice(licence),
        heldout=listed(corpus.heldout),
        heldout_bytes=len(heldout.encode()),
        calibration=listed(calibration_modules(corpus.training)),
        calibration_bytes=len(calibration.encode()),
        selection=listed(corpus.selection),
        command=command,
    )
    (output / "README.md").write_text(overview, encoding="utf-8")
