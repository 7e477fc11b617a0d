"""The text of the samples: the source of Python's own standard library, in three disjoint parts, and as tokens."""

from __future__ import annotations

import hashlib
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

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


def standard_library(root: Path) -> dict[str, str]:
    """Give the modules below ``root`` that are worth learning from, in the order of their paths."""
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
    """Give the modules split into training, selection and held-out ones. A module this Python lacks is passed over."""
    modules = standard_library(root)
    apart = set(HELDOUT_MODULES) | set(SELECTION_MODULES)
    return Corpus(
        training={name: text for name, text in modules.items() if name not in apart},
        selection={name: modules[name] for name in SELECTION_MODULES if name in modules},
        heldout={name: modules[name] for name in HELDOUT_MODULES if name in modules},
    )


def document(name: str, source: str) -> str:
    """Give a module as the models read it: its path as a comment, then its source."""
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


def train_tokenizer(training: dict[str, str]) -> PreTrainedTokenizerFast:
    """Give a byte-level BPE of the training text."""
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
    """Give token ids without special tokens, however long the text."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def end_of_text(tokenizer: PreTrainedTokenizerFast) -> int:
    """Give the id of the end-of-text token."""
    return encode(tokenizer, END)[0]


def token_stream(tokenizer: PreTrainedTokenizerFast, modules: dict[str, str]) -> Tensor:
    """Give all modules as one sequence of ids, the end-of-text token before each and after the last: [tokens]."""
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
