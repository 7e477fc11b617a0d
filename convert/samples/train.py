"""Trains the bundled sample checkpoints on the source of Python's own standard library.

Every Python carries that text, so the samples can be made again anywhere, offline:

    python -m convert_attn.convert.samples.train --output convert/samples --threads 1

Two small multi-head models come out, a GPT-2 and a Llama, with eight heads each: large enough to have learned something
that a conversion can spoil, small enough to be part of the package. What is measured here is measured on modules that
neither the models nor the tokenizer saw.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import re
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CONTEXT = 512
VOCABULARY = 2048
ROPE_THETA = 10000.0
END = "<|endoftext|>"
LICENCE_FILE = "LICENSE-PYTHON.txt"
EXCERPT_LIMIT = 200_000  # bytes; of heldout.txt and of calibration.txt
CALIBRATION_MODULE_LIMIT = 30_000  # bytes; many small modules are a broader sample than a few large ones

# Never in the training text nor in the tokenizer's. None of them names another copyright holder than the PSF, none has
# a near twin that stays in training (as posixpath has in ntpath).
HELDOUT_MODULES = (
    "calendar.py",
    "cmd.py",
    "copy.py",
    "csv.py",
    "filecmp.py",
    "fractions.py",
    "graphlib.py",
    "heapq.py",
    "queue.py",
    "sched.py",
    "selectors.py",
    "shlex.py",
)
# Not in the training text either: the training recipe was chosen on these, so that the held-out text stays unseen.
SELECTION_MODULES = ("glob.py", "hmac.py", "netrc.py", "pprint.py", "timeit.py", "weakref.py")

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
# Tables rather than code; the build's own configuration (_sysconfigdata, config-3.x) is left out by its name's start,
# since it differs between machines.
SKIPPED_MODULES = frozenset({"html/entities.py", "stringprep.py", "this.py", "msilib/schema.py", "msilib/sequence.py"})
SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-", "__phello__")


@dataclass(frozen=True)
class Corpus:
    """The standard library's modules as {relative posix path: source}, in three disjoint parts."""

    training: dict[str, str]
    selection: dict[str, str]
    heldout: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """What the training depends on besides the text and the architecture."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    seed: int
    threads: int


@dataclass(frozen=True)
class Quality:
    """A model beside the unigram model, on the same held-out tokens; cross-entropies in nats per token."""

    tokens: int
    cross_entropy: float
    perplexity: float
    unigram_cross_entropy: float
    unigram_perplexity: float

    @property
    def times_better(self) -> float:
        return self.unigram_perplexity / self.perplexity


# --- the text ---------------------------------------------------------------------------------------------------------


def standard_library(root: Path) -> dict[str, str]:
    """The modules below ``root`` that are worth learning from, in the order of their paths."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        name = relative.as_posix()
        if SKIPPED_FOLDERS.intersection(relative.parts) or name in SKIPPED_MODULES:
            continue
        if name.startswith(SKIPPED_PREFIXES):
            continue
        with tokenize.open(path) as file:  # honours a coding cookie
            text = file.read()
        if text.strip():
            modules[name] = text
    return modules


def read_corpus(root: Path) -> Corpus:
    """The modules split into training, selection and held-out ones. A module this Python lacks is passed over."""
    modules = standard_library(root)
    apart = set(HELDOUT_MODULES) | set(SELECTION_MODULES)
    return Corpus(
        training={name: text for name, text in modules.items() if name not in apart},
        selection={name: modules[name] for name in SELECTION_MODULES if name in modules},
        heldout={name: modules[name] for name in HELDOUT_MODULES if name in modules},
    )


def document(name: str, source: str) -> str:
    """A module as the models read it: its path as a comment, then its source."""
    return f"# Lib/{name}\n{source.rstrip()}\n"


def excerpt(modules: dict[str, str]) -> str:
    """Several modules as one text. The end-of-text token stays out: other models' tokenizers do not know it."""
    return "\n".join(document(name, source) for name, source in modules.items())


def calibration_modules(training: dict[str, str]) -> dict[str, str]:
    """Training modules in the order of their name's hash (so, of every kind) for as long as they fit."""
    chosen: dict[str, str] = {}
    used = 0
    for name in sorted(training, key=lambda name: hashlib.sha256(name.encode()).digest()):
        # The excerpts are shipped under the PSF's licence alone, so a module with a notice of its own stays out.
        if "copyright" in training[name].lower():
            continue
        size = len(document(name, training[name]).encode()) + 1
        if size <= CALIBRATION_MODULE_LIMIT and used + size <= EXCERPT_LIMIT:
            chosen[name] = training[name]
            used += size
    return dict(sorted(chosen.items()))


# --- tokens -----------------------------------------------------------------------------------------------------------


def train_tokenizer(training: dict[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document(name, text) for name, text in training.items()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids without special tokens, however long the text."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def end_of_text(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the end-of-text token."""
    return encode(tokenizer, END)[0]


def token_stream(tokenizer: PreTrainedTokenizerFast, modules: dict[str, str]) -> Tensor:
    """All modules as one sequence of ids, the end-of-text token before each and after the last: [tokens]."""
    end = end_of_text(tokenizer)
    ids = [end]
    for name, source in modules.items():
        ids += [*encode(tokenizer, document(name, source)), end]
    return torch.tensor(ids)


def windows(ids: Tensor) -> Tensor:
    """Non-overlapping windows of the whole context; a shorter rest is dropped: [windows, CONTEXT]."""
    count = len(ids) // CONTEXT
    return ids[: count * CONTEXT].view(count, CONTEXT)


def batches(stream: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches, epoch after epoch; each epoch cuts the stream elsewhere and shuffles: [batch, CONTEXT]."""
    left = torch.empty(0, CONTEXT, dtype=stream.dtype)
    while True:
        start = int(torch.randint(CONTEXT, (), generator=generator))
        cut = windows(stream[start:])
        left = torch.cat([left, cut[torch.randperm(len(cut), generator=generator)]])
        while len(left) >= batch:
            yield left[:batch]
            left = left[batch:]


# --- models -----------------------------------------------------------------------------------------------------------


def build_gpt2(end: int) -> PreTrainedModel:
    """GPT-2: learned positions, LayerNorm, GELU, biases, a fused Conv1D for q, k and v."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=4,
            n_head=8,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            summary_first_dropout=0.0,
            initializer_range=0.05,
            bos_token_id=end,
            eos_token_id=end,
            tie_word_embeddings=True,
        )
    )


def build_llama(end: int) -> PreTrainedModel:
    """Llama: rotary positions, RMSNorm, SwiGLU, no biases, as many key-value heads as heads."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            rms_norm_eps=1e-6,
            initializer_range=0.05,
            bos_token_id=end,
            eos_token_id=end,
            tie_word_embeddings=True,
        )
    )


# What transformers 5 no longer writes into config.json, and other readers look for.
OLDER_KEYS: dict[str, dict[str, Any]] = {"gpt2": {"n_ctx": CONTEXT}, "llama": {"rope_theta": ROPE_THETA}}

BUILDERS = {"gpt2": build_gpt2, "llama": build_llama}


def build(name: str, end: int) -> PreTrainedModel:
    """A model with fresh weights. Its configuration names no padding token: with one, Llama would not train it."""
    model = BUILDERS[name](end)
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    return model


# --- training and measuring -------------------------------------------------------------------------------------------


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: gains and biases have no scale to give up."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)


def rate_at(step: int, recipe: Recipe) -> float:
    """The factor on the learning rate: a linear warm-up, then half a cosine down to a hundredth."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done))


def token_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Cross-entropies in nats of all tokens but the first of each window: [batch * (CONTEXT - 1)]."""
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")


@torch.inference_mode()
def cross_entropy(model: PreTrainedModel, cut: Tensor, batch: int = 8) -> float:
    """Mean cross-entropy in nats per token over windows [windows, CONTEXT]."""
    losses = [token_losses(model, part) for part in cut.split(batch)]
    return float(torch.cat(losses).double().mean())


def unigram_cross_entropy(stream: Tensor, cut: Tensor) -> float:
    """The same for a model that knows the tokens' frequencies in ``stream`` (plus one each), and nothing else."""
    counts = torch.bincount(stream, minlength=VOCABULARY).double() + 1.0
    log_probability = (counts / counts.sum()).log()
    return float(-log_probability[cut[:, 1:]].mean())


def train(model: PreTrainedModel, stream: Tensor, selection: Tensor, recipe: Recipe, report_every: int) -> None:
    """Trains ``model`` in place; ``selection`` windows are only looked at, every ``report_every`` steps."""
    optimizer = optimizer_of(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, recipe))
    feed = batches(stream, recipe.batch, torch.Generator().manual_seed(recipe.seed))
    began = time.perf_counter()
    recent = 0.0
    model.train()
    for step in range(1, recipe.steps + 1):
        loss = token_losses(model, next(feed)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += (float(loss.detach()) - recent) / min(step, 50)
        if step % report_every == 0 or step == recipe.steps:
            model.eval()
            seen = cross_entropy(model, selection)
            model.train()
            seconds = time.perf_counter() - began
            print(f"step {step:5d}  training {recent:.4f}  selection {seen:.4f}  {seconds:7.1f} s", flush=True)
    model.eval()


def measure(model: PreTrainedModel, stream: Tensor, cut: Tensor) -> Quality:
    """Held-out quality of the stored fp16 values, computed in fp32 so that only the storage counts."""
    ours = cross_entropy(model.float(), cut)
    unigram = unigram_cross_entropy(stream, cut)
    return Quality(
        tokens=cut[:, 1:].numel(),
        cross_entropy=ours,
        perplexity=math.exp(ours),
        unigram_cross_entropy=unigram,
        unigram_perplexity=math.exp(unigram),
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def edit_json(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(values)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the checkpoint, with the keys that readers older than transformers 5 look for."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    edit_json(folder / "config.json", **OLDER_KEYS[model.config.model_type])
    # transformers 5 writes the name of a class of its own, which 4 does not know; both load this one.
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def training_record(
    model: PreTrainedModel, corpus: Corpus, stream: Tensor, quality: Quality, recipe: Recipe, seconds: float
) -> dict[str, Any]:
    """What training.json holds."""
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

Made by `python -m convert_attn.convert.samples.train --only {name} --threads {threads}`.
"""


def card(name: str, model: PreTrainedModel, record: dict[str, Any]) -> str:
    """The checkpoint's README.md."""
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

Everything here but `__init__.py` and `train.py` was made, on CPython {python}, by

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
    """The PSF's notice of copyright, as its licence agreement asks for it to be retained."""
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


# --- the command ------------------------------------------------------------------------------------------------------


def make_sample(
    name: str, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, recipe: Recipe, folder: Path, report_every: int
) -> Quality:
    """Trains one model, measures it, and writes its folder."""
    stream = token_stream(tokenizer, corpus.training)
    selection = windows(token_stream(tokenizer, corpus.selection))
    heldout = windows(torch.tensor(encode(tokenizer, excerpt(corpus.heldout))))
    torch.manual_seed(recipe.seed)
    model = build(name, end_of_text(tokenizer))
    print(f"{name}: {model.num_parameters():,} parameters, {len(stream):,} tokens of text", flush=True)
    began = time.perf_counter()
    train(model, stream, selection, recipe, report_every)
    seconds = time.perf_counter() - began
    folder.mkdir(parents=True, exist_ok=True)
    save(model.half(), tokenizer, folder)
    quality = measure(model, stream, heldout)
    record = training_record(model, corpus, stream, quality, recipe, seconds)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(name, model, record), encoding="utf-8")
    return quality


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convert_attn.convert.samples.train",
        description="Train the sample checkpoints on the Python standard library's source.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("out/samples"), help="folder to write into")
    parser.add_argument("--only", choices=sorted(BUILDERS), help="train this model alone (default: both)")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=2, help=f"windows of {CONTEXT} tokens in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps up to the highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="AdamW's, on matrices only")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the windows' order")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; part of what fixes the result")
    parser.add_argument("--report-every", type=int, default=200, help="steps between two lines of progress")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    recipe = Recipe(
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        warmup=min(options.warmup, options.steps),
        weight_decay=options.weight_decay,
        seed=options.seed,
        threads=options.threads,
    )
    root = Path(sysconfig.get_paths()["stdlib"])
    corpus = read_corpus(root)
    options.output.mkdir(parents=True, exist_ok=True)
    command = f"python -m convert_attn.convert.samples.train --output convert/samples --threads {recipe.threads}"
    write_texts(corpus, root, options.output, command)
    tokenizer = train_tokenizer(corpus.training)
    for name in [options.only] if options.only else sorted(BUILDERS):
        quality = make_sample(name, tokenizer, corpus, recipe, options.output / name, options.report_every)
        print(
            f"{name}: held-out perplexity {quality.perplexity:.2f}, unigram {quality.unigram_perplexity:.1f}, "
            f"{quality.times_better:.1f} times better",
            flush=True,
        )


if __name__ == "__main__":
    main()
