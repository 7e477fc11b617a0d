"""Text for calibration, as windows of token ids: a file, a dataset, the package's own text, or the model's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

import convert_attn.modeling  # noqa: F401  registers our classes, which a source may be
from convert_attn.convert.checkpoint.loading import load_language_model
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.samples import calibration_text, general_heldout_text, general_text, heldout_text
from convert_attn.convert.text import encoder_windows, pair_windows
from convert_attn.convert.text.decoder import Decoder
from convert_attn.convert.text.documents import read_documents, split_documents
from convert_attn.convert.text.pairs import holds_pairs, read_pairs
from convert_attn.convert.text.sounds import EXPECTED

AUTO, NONE, SAMPLE, SELF = "auto", "none", "sample", "self"
TOKEN_FILE = ".npy"
TOKENS, SELF_TOKENS, AUTO_TOKENS = 131072, 16384, 32768
"""How many are used where the user does not say: of text, of what the model has to write first, of the package's."""

_WINDOW = 512
_HELD_WINDOW, _HELD = 512, 12  # tokens in a window that is measured on, and how many of them
_MORE_SHORT = 8  # times as many windows are measured on where they are those of an encoder, which are short
_SPREAD = 16  # times the tokens wanted are read, and windows drawn from them
_SELECTION = 8  # every eighth window is kept for choosing between fits
CALIBRATION_REMEDY = "calibration needs one; put tokenizer.json into its folder, or give --calibration none"


@dataclass(frozen=True)
class _Kind:
    """How documents become windows.

    Attributes:
        encoder: short texts with the tokenizer's special tokens around them.
        decoder: of an encoder-decoder, what targets begin with; None of others.
        pairs: the text is of sources and targets.
    """

    encoder: bool = False
    decoder: Decoder | None = None
    pairs: bool = False


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows [N, T] of token ids to fit on, and others, disjoint, to choose on.

    Attributes:
        held: more of the same text for measuring, disjoint from both; None where there is no more.
        pairs: they are of sources and targets that belong together: see `pair_windows`.
    """

    fit: Tensor
    selection: Tensor
    warnings: tuple[str, ...] = ()
    held: Tensor | None = None
    pairs: bool = False

    @property
    def tokens(self) -> int:
        """How many there are in all; a single window serves twice and counts once."""
        chosen_on = 0 if self.selection is self.fit else pair_windows.count_tokens(self.selection)
        return pair_windows.count_tokens(self.fit) + chosen_on

    def trimmed(self) -> Windows:
        """Give windows of pairs without what none of them fills."""
        fit = pair_windows.trimmed(self.fit)
        selection = fit if self.selection is self.fit else pair_windows.trimmed(self.selection)
        held = None if self.held is None else pair_windows.trimmed(self.held)
        return replace(self, fit=fit, selection=selection, held=held)


def check_calibration(spec: str) -> None:
    """Refuse a text that is not there, before any work.

    Raises:
        UsageError: see `read_documents`.
    """
    if spec.endswith(TOKEN_FILE):
        if not Path(spec).is_file():
            raise UsageError(f"calibration tokens '{spec}' are not there")
    elif spec not in (AUTO, SAMPLE, SELF):
        read_documents(spec)


def calibration_windows(
    spec: str,
    folder: Path,
    *,
    name: str,
    context: int,
    vocabulary: int,
    tokens: int | None,
    seed: int,
    encoder: bool = False,
    decoder: Decoder | None = None,
) -> Windows:
    """Calibration text of a checkpoint as windows of its tokens.

    Args:
        spec: "auto" (the package's general text), "sample" (that which the bundled samples were trained on), "self"
            (the model writes it), what `read_documents` takes, or a .npy file of windows of token ids [N, T], which
            are taken as they are.
        folder: the checkpoint's, for its tokenizer.
        name: what the user called it.
        context: longest window the model takes.
        vocabulary: how many token ids the model knows.
        tokens: how many at most; None: `TOKENS`, `AUTO_TOKENS` for "auto", `SELF_TOKENS` for "self".
        seed: of which windows are taken, or of what the model writes.
        encoder: windows are short texts with the tokenizer's special tokens around them.
        decoder: of an encoder-decoder: windows are sources and targets, see `pair_windows`, of pairs where the text is
            of such (`read_pairs`).

    Raises:
        UsageError: no pairs for a model that reads sounds.
        ConvertAttnError: no tokenizer, no text in it, or tokens that the model does not know.
    """
    window, held, kind = min(context, encoder_windows.WINDOW if encoder else _WINDOW), None, _Kind(encoder, decoder)
    if spec.endswith(TOKEN_FILE):
        windows = token_file(Path(spec), context, tokens)
    elif spec == SELF:
        windows = _written_by_model(folder, name, tokens or SELF_TOKENS, window, seed)
    else:
        wanted = tokens or (AUTO_TOKENS if spec == AUTO else TOKENS)
        tokenizer = load_tokenizer(folder, name)
        own = spec not in (AUTO, SAMPLE)
        kind = replace(kind, pairs=decoder is not None and own and holds_pairs(spec))
        if decoder is not None and decoder.sounds is not None and not kind.pairs:
            raise UsageError(f"'{name}' reads sounds and calibration text '{spec}' has none: give {EXPECTED}")
        windows = _cut(spec, tokenizer, min(window, wanted), _SPREAD * wanted, kind)
        most = _HELD * _MORE_SHORT if encoder else _HELD
        if kind.pairs:  # as many tokens, of windows that are shorter
            most = max(_HELD, _HELD * _HELD_WINDOW * len(windows) // pair_windows.count_tokens(windows))
        length = windows.shape[1] if decoder is not None else min(windows.shape[1], _HELD_WINDOW)
        windows, held = _drawn(windows, wanted, most if own else 0, seed, length=length, pairs=kind.pairs)
    strange = windows[(windows >= vocabulary) | (windows < (pair_windows.MARK if decoder is not None else 0))]
    if strange.numel():
        raise ConvertAttnError(
            f"calibration text '{spec}' has the token id {int(strange[0])} but '{name}' knows 0 to {vocabulary - 1}: "
            "the tokens are another model's; use the tokenizer that belongs to this one"
        )
    found = replace(_parted(windows), held=held, pairs=kind.pairs)
    return found.trimmed() if kind.pairs else found


def shipped_windows(
    spec: str | None,
    folder: Path,
    name: str,
    context: int,
    vocabulary: int,
    *,
    encoder: bool = False,
    decoder: Decoder | None = None,
) -> tuple[Tensor, str]:
    """Give windows [N, T] of the package's held-out text to measure on, and what to call it.

    Args:
        spec: the calibration text: the samples' own held-out text goes with "sample", the general one with all others.
        encoder, decoder: as for `calibration_windows`.

    Raises:
        ConvertAttnError: no tokenizer, or tokens that the model does not know.
    """
    text, called = (heldout_text(), "Python modules") if spec == SAMPLE else (general_heldout_text(), "general text")
    longest, most = (encoder_windows.WINDOW, _HELD * _MORE_SHORT) if encoder else (_HELD_WINDOW, _HELD)
    tokenizer, wanted = load_tokenizer(folder, name), 4 * _HELD * _HELD_WINDOW
    windows = _windows_of(split_documents(text), tokenizer, min(context, longest), wanted, _Kind(encoder, decoder))
    if windows.shape[1] < 2:
        raise ConvertAttnError(f"the tokenizer of '{name}' makes {windows.numel()} tokens of the held-out text")
    strange = windows[windows >= vocabulary]
    if strange.numel():
        raise ConvertAttnError(
            f"the tokenizer of '{name}' gives the token id {int(strange[0])} but the model knows 0 to {vocabulary - 1}"
        )
    chosen = torch.linspace(0, len(windows) - 1, min(most, len(windows))).long()
    return windows[chosen], f"held-out {called} of the package"


def _documents(spec: str) -> Iterable[str]:
    if spec == SAMPLE:
        return [calibration_text()]
    return split_documents(general_text()) if spec == AUTO else read_documents(spec)


def _windows_of(documents: Iterable[str], tokenizer: Any, window: int, wanted: int, kind: _Kind) -> Tensor:
    """Documents as windows [N, T] of token ids, of some tokens at most; none where there is no token."""
    if kind.decoder is not None or kind.encoder:
        ids = encoder_windows.plain_tokens(documents, tokenizer, wanted)
        if not ids:
            return torch.zeros(0, 0, dtype=torch.long)
        if kind.decoder is not None:
            return pair_windows.halves(ids, tokenizer, window, kind.decoder.start)
        return encoder_windows.framed(ids, tokenizer, window)
    ids = _token_ids(documents, tokenizer, wanted)
    window = min(window, len(ids))
    return torch.tensor(ids[: len(ids) // max(1, window) * window], dtype=torch.long).reshape(-1, max(1, window))


def _pairs_of(spec: str, tokenizer: Any, window: int, wanted: int, kind: _Kind) -> Tensor:
    """Pairs as windows [N, S + 1 + T], of some tokens at most; none where there is no token."""
    assert kind.decoder is not None
    found, count = [], 0
    for sides in pair_windows.tokenised(read_pairs(spec), tokenizer, max(2, window), kind.decoder, spec):
        found.append(sides)
        count += sum(map(len, sides))
        if count >= wanted:
            break
    return pair_windows.paired(found) if found else torch.zeros(0, 0, dtype=torch.long)


def _cut(spec: str, tokenizer: Any, window: int, wanted: int, kind: _Kind) -> Tensor:
    """A calibration text as windows [N, T].

    Raises:
        ConvertAttnError: hardly any text.
    """
    windows = _pairs_of(spec, tokenizer, window, wanted, kind) if kind.pairs else None
    if windows is None:
        windows = _windows_of(_documents(spec), tokenizer, window, wanted, kind)
    if windows.shape[1] < 2 or not len(windows):
        raise ConvertAttnError(
            f"calibration text '{spec}' has {windows.numel()} tokens, expected at least 2: give more text"
        )
    return windows


def _drawn(
    windows: Tensor, wanted: int, most: int, seed: int, *, length: int, pairs: bool
) -> tuple[Tensor, Tensor | None]:
    """Windows from all over a text, and others, `most` of this length at most, to measure on where there is more."""
    window = windows.shape[1]
    each = pair_windows.count_tokens(windows) / len(windows) if pair_windows.is_filled(windows) else window
    # texts often go topic by topic: a few windows from everywhere tell more than as many from the beginning
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    spare = min(most, len(windows) // _SELECTION) if pairs else 0  # of pairs the package has none
    count = max(1, min(int(wanted / each), len(windows) - spare))
    more = windows[order[count : count + -(-most * length // window)].sort().values]
    held = more[:, : window // length * length].reshape(-1, length)[:most]
    measured = held if most and len(held) >= min(most, 4) else None
    return windows[order[:count].sort().values], measured


def token_file(path: Path, context: int, tokens: int | None) -> Tensor:
    """Give windows [N, T] that somebody else has cut and tokenised."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ConvertAttnError(f"calibration tokens '{path}' cannot be read ({error}): expected an array") from None
    if not isinstance(found, np.ndarray):
        raise ConvertAttnError(f"calibration tokens '{path}' are an archive, expected one array: save it by numpy.save")
    if found.ndim != 2 or found.dtype.kind not in "iu" or found.shape[1] < 2 or not len(found):
        raise ConvertAttnError(
            f"calibration tokens '{path}' have shape {list(found.shape)} and dtype {found.dtype}, expected integers "
            "[windows, tokens per window]"
        )
    if found.shape[1] > context:
        raise ConvertAttnError(f"windows of '{path}' have {found.shape[1]} tokens, the model takes at most {context}")
    windows = torch.from_numpy(found.astype(np.int64))
    return windows if tokens is None else windows[: max(1, tokens // found.shape[1]), :tokens]


def _parted(windows: Tensor) -> Windows:
    """Every eighth window for choosing; a single one has to serve for both."""
    chosen = torch.arange(len(windows)) % _SELECTION == _SELECTION - 1
    if len(windows) >= 2 and not chosen.any():
        chosen[-1] = True
    fit, selection = windows[~chosen], windows[chosen]
    if len(selection):
        return Windows(fit=fit, selection=selection)
    note = "the calibration text is one window long: what is chosen on it was fitted on it too"
    return Windows(fit=fit, selection=fit, warnings=(note,))


def load_tokenizer(folder: Path, name: str, remedy: str = CALIBRATION_REMEDY) -> Any:
    """Give the tokenizer of a folder.

    Args:
        remedy: who needs it, and what to do without.

    Raises:
        ConvertAttnError: it has none that loads.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a broken or missing tokenizer raises
        raise _no_tokenizer(name, f"no tokenizer that can be loaded ({' '.join(str(error).split())})", remedy) from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes up an empty one for some classes
        raise _no_tokenizer(name, "no tokenizer", remedy)
    return tokenizer


def _no_tokenizer(name: str, found: str, remedy: str) -> ConvertAttnError:
    return ConvertAttnError(f"'{name}' has {found}: {remedy}")


def _token_ids(documents: Iterable[str], tokenizer: Any, wanted: int) -> list[int]:
    """Documents one after the other, an end-of-text token between them where the tokenizer has one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for document in documents:
        ids += (end if ids else []) + tokenizer(document, verbose=False)["input_ids"]
        if len(ids) >= wanted:
            break
    return ids[:wanted]


def _written_by_model(folder: Path, name: str, tokens: int, window: int, seed: int) -> Tensor:
    """Text drawn from the model's own distribution, each window from a random first token: no data is needed.

    The whole model is in memory for this.
    """
    model = _writer(folder, name)
    window = min(window, tokens)
    count = max(1, tokens // window)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        start = torch.randint(0, model.config.vocab_size, (count, 1))
        parts = [
            model.generate(
                part, do_sample=True, top_k=0, max_new_tokens=window - 1, attention_mask=torch.ones_like(part)
            )
            for part in start.split(16)
        ]
    return torch.cat(parts)


def _writer(folder: Path, name: str) -> Any:
    """The model, with no settings of its own for generation: penalties or an end would make another distribution."""
    try:
        model = load_language_model(folder, name, dtype="auto")
    except ConvertAttnError as error:
        raise ConvertAttnError(f"{error}; so it cannot write its own text: give a text file as --calibration") from None
    model.generation_config = GenerationConfig()
    return model
