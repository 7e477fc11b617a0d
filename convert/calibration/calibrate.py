"""Calibration: a checkpoint run over text, block by block, for the statistics that methods weigh errors with.

Memory is one block, three D x D sums and the states of the windows between two blocks (tokens x D in float32; in a
file where they are large). What was measured is kept on disk and found again for the same checkpoint and text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from convert_attn.convert.calibration.statistics import Gathering, LayerStatistics
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.progress import Progress
from convert_attn.convert.streaming.stream import Stream
from convert_attn.convert.weights.attention import AttentionWeights
from convert_attn.convert.weights.functional import Attention, batched

ReadLayer = Callable[[int], AttentionWeights]

_VERSION = 2  # of what is measured: older files are not read
_BATCH_TOKENS = 4096
_BATCH_SCORES = 2**26
IN_MEMORY = 2**29  # bytes of states above which they live in a file


def batches(windows: Tensor, heads: int) -> list[Tensor]:
    """Give windows [N, T] in batches that keep attention scores within memory."""
    length = windows.shape[1]
    size = max(1, min(_BATCH_TOKENS // length, _BATCH_SCORES // (heads * length**2)))
    return list(windows.split(size))


@contextmanager
def spool(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Give room for states in float32: memory, or a file without a name where it is large."""
    numbers = torch.Size(shape).numel()
    if numbers * 4 <= IN_MEMORY:
        yield torch.empty(shape)
        return
    with tempfile.NamedTemporaryFile(prefix="convert-attn-", suffix=".states") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, numbers * 4)
        except OSError as error:
            raise ConvertAttnError(
                f"the states of the calibration text need {numbers * 4:,} bytes in {tempfile.gettempdir()} "
                f"({error.strerror}); set TMPDIR to a larger disk, or give fewer --calibration-tokens"
            ) from None
        yield torch.from_file(file.name, shared=True, size=numbers).reshape(shape)


def cache_folder() -> Path:
    """Tell where statistics are kept: $CONVERT_ATTN_CACHE, else convert-attn in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("CONVERT_ATTN_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convert-attn"


def _key(source: Source, windows: Tensor) -> str:
    """Names a checkpoint's content and the text's tokens: another of either is another key."""
    digest = hashlib.sha256(json.dumps([_VERSION, source.config], sort_keys=True).encode())
    for info in source.weights.infos.values():
        digest.update(json.dumps(asdict(info)).encode())
    for file in sorted({info.file for info in source.weights.infos.values()}):
        path = source.origin.folder / file
        if path.exists():  # (a .bin shard goes by another name; its tensors' headers have been counted)
            state = path.stat()
            digest.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    digest.update(source.origin.folder.resolve().as_posix().encode())
    digest.update(windows.contiguous().numpy().tobytes() + str(tuple(windows.shape)).encode())
    return digest.hexdigest()[:32]


class Calibration:
    """The statistics of every layer, on disk; one layer of them in memory at a time."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder, self._device = folder, device

    def layer(self, layer: int) -> LayerStatistics:
        """Give one layer's statistics, float64.

        Raises:
            ConvertAttnError: somebody has damaged the file.
        """
        try:
            tensors = load_file(_file(self._folder, layer), device=self._device)
        except (OSError, SafetensorError) as error:
            raise ConvertAttnError(
                f"the calibration statistics kept in '{self._folder}' cannot be read ({error}): delete that folder, "
                "and they are measured anew"
            ) from None
        tokens = int(tensors.pop("tokens"))
        return LayerStatistics(tokens=tokens, **{name: tensor.to(torch.float64) for name, tensor in tensors.items()})


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:04d}.safetensors"


def kept(source: Source, windows: Tensor, device: str) -> Calibration | None:
    """Give the statistics of a checkpoint on tokens [N, T], where an earlier run has left them on disk."""
    folder = _folder(source, windows)
    return Calibration(folder, device) if folder.is_dir() else None


def _folder(source: Source, windows: Tensor) -> Path:
    return cache_folder() / "calibration" / _key(source, windows)


@dataclass(kw_only=True)
class Collecting:
    """Statistics that are measured while the original runs for another reason; kept on disk when all layers are there.

    Attributes:
        windows: [N, T] token ids, for the length of windows.
        heads: H.
    """

    stream: Stream
    windows: Tensor
    heads: int
    folder: Path
    _gathering: Gathering | None = None

    def watch(self, attention: Attention) -> Tensor:
        """Give the attention's output [B, T, D] on a batch, which counts."""
        if self._gathering is None:
            length = self.stream.length(self.windows)
            self._gathering = Gathering(self.stream.hidden_size, self.heads, length, self.stream.device)
        return self._gathering.attend(attention)

    def layer(self, layer: int) -> LayerStatistics:
        """Tell what was counted since the layer before, as it is found on disk: a later run gives the same bytes."""
        if self._gathering is None:
            raise ValueError("nothing was counted")
        found, self._gathering = self._gathering.result(), None
        _save(found, _file(self.folder, layer))
        return Calibration(self.folder, self.stream.device).layer(layer)


@contextmanager
def collecting(source: Source, stream: Stream, windows: Tensor, heads: int) -> Iterator[Collecting]:
    """Give statistics of a checkpoint on tokens, measured on the way; kept where nothing went wrong.

    Raises:
        ConvertAttnError: nothing can be kept on disk, or the model's numbers are not finite.
    """
    folder = _folder(source, windows)
    partial = _partial(folder.parent)
    try:
        yield Collecting(stream=stream, windows=windows, heads=heads, folder=partial)
        if not folder.is_dir():  # another process may have been faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def calibrate(
    source: Source, stream: Stream, *, read: ReadLayer, windows: Tensor, layers: int, heads: int, progress: Progress
) -> Calibration:
    """Give statistics of a checkpoint on tokens: found on disk, or measured and kept there.

    Args:
        read: the attention weights of a layer.
        windows: [N, T] token ids.
        layers: L.
        heads: H.

    Raises:
        ConvertAttnError: nothing can be kept on disk, or the model's numbers are not finite.
    """
    known = kept(source, windows, stream.device)
    if known is not None:
        return known
    with collecting(source, stream, windows, heads) as found:
        _measure(stream, read, windows=windows, layers=layers, heads=heads, found=found, progress=progress)
    return Calibration(_folder(source, windows), stream.device)


def _partial(parent: Path) -> Path:
    """A fresh folder for statistics that are being measured."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="partial-", dir=parent))
    except OSError as error:
        raise ConvertAttnError(
            f"calibration statistics cannot be kept in '{parent}' ({error.strerror}); set CONVERT_ATTN_CACHE to a "
            "folder that can be written"
        ) from None


@torch.no_grad()
def _measure(
    stream: Stream,
    read: ReadLayer,
    *,
    windows: Tensor,
    layers: int,
    heads: int,
    found: Collecting,
    progress: Progress,
) -> None:
    parts = batches(windows, heads)
    count, hidden = len(windows), stream.hidden_size
    shape, other_shape = (count, stream.length(windows), hidden), (count, stream.source_length(windows), hidden)
    with spool(shape) as states, spool(other_shape) as others:
        places = states.split([len(part) for part in parts])
        for place, embedded in zip(places, stream.embed(parts), strict=True):
            place.copy_(embedded)
        if stream.across:
            stream.encode(windows, others, len(parts[0]))
        met = batched(stream.side(windows, others), count, len(parts[0]))
        for layer in filter(stream.reads, range(layers)):
            weights = read(layer).to(torch.float32)
            with stream.block(layer) as block:
                for done, (place, given) in enumerate(zip(places, met, strict=True)):
                    progress("calibration", layer * len(places) + done, layers * len(places))
                    place.copy_(
                        block.run(
                            place.to(stream.device),
                            lambda x: found.watch(block.computed(weights, x, given)),  # noqa: B023
                        )
                    )
            found.layer(layer)
    progress("calibration", layers * len(places), layers * len(places))


def _save(found: LayerStatistics, path: Path) -> None:
    bad = [name for name, value in vars(found).items() if isinstance(value, Tensor) and not value.isfinite().all()]
    if bad:
        raise ConvertAttnError(
            "the model gives numbers that are not finite on the calibration text: its weights do not work as a "
            "language model in float32"
        )
    tensors = {name: value.float().cpu() for name, value in vars(found).items() if isinstance(value, Tensor)}
    save_file(tensors | {"tokens": torch.tensor(found.tokens)}, path)
