"""The output folder: shards written tensor by tensor at their final place, and the folder whole or not at all.

Everything goes into a temporary sibling of the output, which is renamed when it has been verified. Killed at
any moment, the sibling is left, never the output; the next run to the same output removes it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path

from convert_attn.convert.checkpoint.safetensors_format import TensorInfo, build_header
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.processes import is_alive

_INDEX = "model.safetensors.index.json"
_active: set[Path] = set()  # temporary folders in use by this process
_lock = threading.Lock()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a small file so that it is there whole or as it was.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Safetensors shards with known contents, filled in any order.

    The offsets follow from the headers alone, so a tensor is written where it belongs as soon as it is there:
    memory holds one tensor, whatever the order of the source. Threads may write tensors side by side.

    Args:
        durable: whether `close` waits until the disk has all of it.
    """

    def __init__(
        self,
        folder: Path,
        shards: dict[str, list[TensorInfo]],
        metadata: dict[str, dict[str, str]],
        *,
        durable: bool = True,
    ) -> None:
        self._folder, self._durable = folder, durable
        self._alone = threading.Lock()
        self._files: dict[str, FileIO] = {}
        self._places: dict[str, TensorInfo] = {}
        self._left: set[str] = set()
        self._shards = shards
        for file, infos in shards.items():
            header, offsets = build_header(infos, {"format": "pt"} | metadata.get(file, {}))
            handle = (folder / file).open("wb", buffering=0)
            self._files[file] = handle
            self._write(file, header, 0)
            for info in infos:
                self._places[info.name] = replace(info, offset=offsets[info.name])
                self._left.add(info.name)

    def put(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write one tensor.

        Raises:
            ConvertAttnError: its size is not what the header says.
        """
        place = self._places[name]
        written = 0
        for chunk in chunks:
            if written + len(chunk) <= place.nbytes:
                self._write(place.file, chunk, place.offset + written)
            written += len(chunk)
            if written > place.nbytes:
                break
        if written != place.nbytes:
            raise ConvertAttnError(f"tensor '{name}' has {written} bytes or more, expected {place.nbytes}")
        self._left.discard(name)

    def _write(self, file: str, content: bytes | memoryview, offset: int) -> None:
        """Write all of it at its place, whoever else is writing."""
        handle, left = self._files[file], memoryview(content)
        with self._alone:
            handle.seek(offset)
            while left:
                left = left[handle.write(left) :]

    def sync(self) -> None:
        """Wait until the disk has what has been written so far."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flush to disk, write the index of a sharded checkpoint.

        Raises:
            ConvertAttnError: a tensor was never written.
        """
        if self._left:
            raise ConvertAttnError(f"tensor '{min(self._left)}' was never written")
        if self._durable:
            self.sync()
        for file in self._files.values():
            file.close()
        if list(self._shards) != ["model.safetensors"]:
            self._write_index()

    def abandon(self) -> None:
        """Close the files of a run that failed."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk, again: it must not hide the first error
                file.close()

    def _write_index(self) -> None:
        total = sum(info.nbytes for infos in self._shards.values() for info in infos)
        weight_map = {info.name: file for file, infos in self._shards.items() for info in infos}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse what cannot or must not be written to.

    Raises:
        UsageError: it exists (without `overwrite`), or it is not a folder.
        ConvertAttnError: its parent cannot be written to.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"output '{output}' exists and is no folder; choose another --output")
    if output.exists() and not overwrite:
        raise UsageError(f"output folder '{output}' exists; give --overwrite to replace it, or another --output")
    if output.exists() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise UsageError(
            f"output folder '{output}' holds something that is no checkpoint and is not overwritten; "
            "choose another --output"
        )
    parent = _existing_parent(output)
    if not parent.is_dir():
        raise UsageError(f"output '{output}' lies below '{parent}', which is no folder; choose another --output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConvertAttnError(f"cannot write to '{parent}': no permission; choose another --output")


def _existing_parent(output: Path) -> Path:
    """The nearest folder above the output that is there already."""
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


def check_space(folder: Path, needed: int) -> None:
    """Refuse early when the disk cannot hold the result.

    Raises:
        ConvertAttnError: too little space.
    """
    parent = _existing_parent(folder)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ConvertAttnError(
            f"'{parent}' has {free / 1e6:.0f} MB free, the result needs {needed / 1e6:.0f} MB; "
            "free some space or choose another --output"
        )


def _temporary_prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _old_prefix(output: Path) -> str:
    return f".{output.name}.old-"


def is_temporary(folder: Path) -> bool:
    """Tell whether a folder is one of those that `whole_or_nothing` works in."""
    return re.fullmatch(r"\..*\.(partial|old)-\d+", folder.resolve().name) is not None


def _remove_stale(output: Path) -> None:
    """What killed runs to the same output left behind: siblings whose process is gone."""
    for path in _dead_siblings(output, _temporary_prefix(output)):
        shutil.rmtree(path, ignore_errors=True)
    for path in _dead_siblings(output, _old_prefix(output)):
        if output.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:  # killed between the two renames of `_publish`: the only copy
            os.rename(path, output)


def _dead_siblings(output: Path, prefix: str) -> list[Path]:
    """The siblings of this prefix that belong to a process that is gone."""
    names = [path.name for path in output.parent.iterdir() if path.name.startswith(prefix)]
    pids = {name: name.removeprefix(prefix) for name in names}
    return [output.with_name(name) for name, pid in pids.items() if pid.isdecimal() and not is_alive(int(pid))]


@contextmanager
def whole_or_nothing(output: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder that becomes `output` when the block ends well, and is removed when it does not.

    Raises:
        UsageError, ConvertAttnError: see `check_output`; also disk full and other failures to write, in words.
    """
    output = output.absolute()
    temporary = output.with_name(f"{_temporary_prefix(output)}{os.getpid()}")
    with _alone(temporary, output):
        _make_temporary(temporary, output, overwrite)
        with _failures_in_words(temporary, output):
            yield temporary
            _publish(temporary, output, overwrite)


@contextmanager
def _alone(temporary: Path, output: Path) -> Iterator[None]:
    """Temporary folders are named after processes: one per output and process.

    Raises:
        UsageError: another thread is at it.
    """
    with _lock:
        if temporary in _active:
            raise UsageError(f"another conversion to '{output}' is running in this process; nothing was overwritten")
        _active.add(temporary)
    try:
        yield
    finally:
        with _lock:
            _active.remove(temporary)


def _make_temporary(temporary: Path, output: Path, overwrite: bool) -> None:
    try:
        if output.parent.is_dir():
            _remove_stale(output)
        check_output(output, overwrite)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise ConvertAttnError(f"cannot write to '{output.parent}': {error.strerror}") from None


@contextmanager
def _failures_in_words(temporary: Path, output: Path) -> Iterator[None]:
    """The temporary folder goes, whatever happens."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConvertAttnError(
                f"the disk that holds '{output.parent}' is full and nothing was written; free space and run again"
            ) from None
        raise ConvertAttnError(f"writing '{output}' failed: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, output: Path, overwrite: bool) -> None:
    """Rename into place; an existing output steps aside first and goes when the new one is there."""
    if not output.exists():
        _rename_new(temporary, output)
        return
    if not overwrite:
        raise _made_meanwhile(output)
    old = output.with_name(f"{_old_prefix(output)}{os.getpid()}")
    os.rename(output, old)
    try:
        _rename_new(temporary, output)
    except UsageError:  # another run with --overwrite was quicker: the old one is gone for both
        shutil.rmtree(old, ignore_errors=True)
        raise
    except OSError:
        os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _rename_new(temporary: Path, output: Path) -> None:
    """Into a place where nothing is.

    Raises:
        UsageError: there is something by now.
    """
    try:
        os.rename(temporary, output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _made_meanwhile(output) from None
        raise


def _made_meanwhile(output: Path) -> UsageError:
    return UsageError(f"output folder '{output}' was made by another run meanwhile; nothing was overwritten")
