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
import shutil
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CONTEXT = 512
VOCABULARY = 2048
END = "<|endoftext|>"
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


def token_stream(tokenizer: PreTrainedTokenizerFast, modules: dict[str, str]) -> Tensor:
    """All modules as one sequence of ids, the end-of-text token before each and after the last: [tokens]."""
    end = tokenizer.convert_tokens_to_ids(END)
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
            n_ctx=CONTEXT,  # transformers no longer reads it, other readers of GPT-2 checkpoints do
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
            pad_token_id=end,
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
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            rms_norm_eps=1e-6,
            initializer_range=0.05,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            tie_word_embeddings=True,
        )
    )


BUILDERS = {"gpt2": build_gpt2, "llama": build_llama}


# --- training and measuring -------------------------------------------------------------------------------------------


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: gains and biases have no scale to give up."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


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
        loss.backward()  # type: ignore[no-untyped-call]
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


def halved(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is stored: its values rounded to fp16."""
    return model.to(torch.float16)


def measure(model: PreTrainedModel, stream: Tensor, cut: Tensor) -> Quality:
    """Held-out quality of the stored fp16 values, computed in fp32 so that only the storage counts."""
    ours = cross_entropy(model.to(torch.float32), cut)
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
    if model.config.model_type == "llama":
        edit_json(folder / "config.json", rope_theta=10000.0)
    # transformers 5 writes the name of a class of its own, which 4 does not know; both load this one.
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
