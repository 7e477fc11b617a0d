"""A model as typed -> files in a local folder: bundled sample, folder, or Hub id at a pinned commit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from fnmatch import fnmatch
from functools import partial
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TypeVar

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from convert_attn.convert.checkpoint.carried import to_download
from convert_attn.convert.checkpoint.formats import check_no_adapter, no_config, no_folder, no_weights
from convert_attn.convert.checkpoint.retry import persistently
from convert_attn.convert.checkpoint.source import Origin
from convert_attn.convert.errors import ConvertAttnError, UsageError, first_line
from convert_attn.convert.samples import SAMPLES, sample_path

T = TypeVar("T")

_SAMPLE = "sample:"
_ONLINE_CHECK_SECONDS = 3.0
# What `open_weights` looks for, in its order, and the files to download where a repository has it.
_WEIGHTS = {
    "model.safetensors": "model.safetensors",
    "model.safetensors.index.json": "*.safetensors",
    "pytorch_model.bin": "pytorch_model.bin",
    "pytorch_model.bin.index.json": "pytorch_model*.bin",
}
_TWICE = ("consolidated*", "adapter_*")  # Mistral's is the whole model a second time


def resolve(model: str, revision: str | None = None, subfolder: str | None = None, *, weights: bool = True) -> Origin:
    """Give the files of a model, downloaded where they are not here yet.

    Args:
        model: Hub id, local folder, or sample:NAME.
        revision: branch, tag or commit, for Hub ids only.
        subfolder: where below the folder or repository the checkpoint is.
        weights: False for config and side files only.

    Raises:
        UsageError: nothing of that name.
        ConvertAttnError: it exists but cannot be had.
    """
    below = _checked_subfolder(subfolder)
    if model.startswith(_SAMPLE):
        if below:
            raise UsageError(f"--subfolder is for folders and Hub ids, and '{model}' has none: drop it")
        name = model.removeprefix(_SAMPLE)
        if name not in SAMPLES:
            raise UsageError(f"sample '{name}' is not known; choose one of {', '.join(SAMPLES)}")
        return Origin(name=model, folder=sample_path(name))
    folder = _folder(model)
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"--revision is for Hub ids, but '{model}' is a local folder: drop it")
        return Origin(name=model, folder=_existing(folder / below, model, below), subfolder=below)
    if folder.is_file():
        raise no_folder(folder)
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"'{model}' is neither a folder nor a Hub id: give a folder that holds a checkpoint")
    return _from_hub(model, revision, below, weights)


def _checked_subfolder(subfolder: str | None) -> str:
    """A relative path that stays below where it starts, with forward slashes; "" for none.

    Raises:
        UsageError: any other path.
    """
    parts = PurePosixPath(subfolder or "").parts
    if any(part in ("..", "/") or "\\" in part or "\0" in part for part in parts):
        raise UsageError(f"--subfolder is '{subfolder}', expected the name of a folder below the model's: a/b")
    return "/".join(parts)


def _existing(folder: Path, model: str, subfolder: str) -> Path:
    if not folder.is_dir():
        raise UsageError(f"'{model}' has no folder '{subfolder}'")
    return folder


def _folder(model: str) -> Path:
    """A model's name as a path.

    Raises:
        UsageError: it cannot be one.
    """
    if not model.strip():
        raise UsageError("the model's name is empty: give a Hub id, a folder or sample:NAME")
    try:
        return Path(model).expanduser()
    except RuntimeError as error:  # ~name of a user who does not exist
        raise UsageError(f"'{model}' is no folder: {first_line(error)}") from None


def _from_hub(model: str, revision: str | None, subfolder: str, weights: bool) -> Origin:
    """The snapshot of a Hub id: of the newest commit when the Hub answers, else of what the cache has."""
    names = _ask_hub(model, revision)
    offline = names is None
    prefix = f"{subfolder}/" if subfolder else ""
    if names is not None and prefix:
        names = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if not names:
            raise UsageError(f"'{model}' has no folder '{subfolder}'")
    # offline the cache may lack a licence or a tokenizer and still serve; missing weights are noticed below
    wanted = {"config.json"} if names is None else _wanted(model, names, weights)

    def download() -> str:
        # the revision as typed, not its commit: the cache then knows the name, for a later run without network
        return snapshot_download(
            model,
            revision=revision,
            allow_patterns=[escape(prefix + name) for name in sorted(wanted)],
            local_files_only=offline,
        )

    try:
        root = persistently(download, tries=1 if offline else 4)
    except HFValidationError as error:
        raise UsageError(f"'{model}' is neither a folder nor a valid Hub id: {first_line(error)}") from None
    except LocalEntryNotFoundError:
        raise ConvertAttnError(_no_network(model, revision)) from None
    except GatedRepoError:
        raise ConvertAttnError(_gated(model)) from None
    except Exception as error:  # the Hub's errors, the HTTP client's own, a full disk
        raise ConvertAttnError(f"downloading '{model}' failed: {first_line(error)}; run again to resume") from None
    folder = Path(root) / subfolder
    if offline and (not folder.is_dir() or (weights and not any((folder / name).is_file() for name in _WEIGHTS))):
        raise ConvertAttnError(_no_network(model, revision))
    elsewhere = () if names is None else tuple(sorted(names - wanted))
    return Origin(name=model, folder=folder, commit=Path(root).name, subfolder=subfolder, elsewhere=elsewhere)


def _wanted(model: str, names: set[str], weights: bool) -> set[str]:
    """The files to download: config, card, what is carried over, and the weights in one format.

    Raises:
        UsageError: there is no checkpoint that could be converted.
    """
    check_no_adapter(names, model)
    if "config.json" not in names:
        raise no_config(names, f"'{model}'")
    wanted = {name for name in ("config.json", "README.md") if name in names} | set(to_download(names))
    return wanted | _weight_files(model, names) if weights else wanted


def _weight_files(model: str, names: set[str]) -> set[str]:
    """The files that hold the weights of a repository with these files."""
    for name, pattern in _WEIGHTS.items():
        if name in names:
            shards = {file for file in names if "/" not in file and fnmatch(file, pattern)}
            return {name} | {file for file in shards if not any(map(partial(fnmatch, file), _TWICE))}
    raise no_weights(names, f"'{model}'")


def _no_network(model: str, revision: str | None) -> str:
    why = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    at = f" at revision '{revision}'" if revision else ""
    return (
        f"'{model}'{at} is not a local folder and not in the cache, and {why}: download it where there is a network "
        f"(`hf download {model}`) and give the folder, or try a bundled model such as sample:gpt2"
    )


def _gated(model: str) -> str:
    return f"'{model}' is gated: accept its terms on its Hub page, then run `hf auth login`"


def within(seconds: float, call: Callable[[], T]) -> T:
    """Give the result of a call to the network, given up after so many seconds.

    The HTTP client's own timeouts cover neither name resolution nor a server that dribbles. The thread is a daemon:
    it does not keep the process.

    Raises:
        TimeoutError: no result in time; else what the call raises.
    """
    answer: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except futures.TimeoutError:  # TimeoutError itself from Python 3.11 on
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def _ask_hub(model: str, revision: str | None) -> set[str] | None:
    """The names of a repository's files; None where the Hub does not answer.

    Raises:
        UsageError, ConvertAttnError: the Hub answers no.
    """
    if constants.HF_HUB_OFFLINE:
        return None
    api = HfApi()
    try:
        info = within(
            _ONLINE_CHECK_SECONDS, lambda: api.model_info(model, revision=revision, timeout=_ONLINE_CHECK_SECONDS)
        )
    except GatedRepoError:
        raise ConvertAttnError(_gated(model)) from None
    except RevisionNotFoundError:
        raise UsageError(f"'{model}' has no revision '{revision}'") from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"'{model}' is not a local folder, and the Hub has no such model (or it is private: `hf auth login`)"
        ) from None
    except Exception as error:  # the HTTP client's own too: no network, refused, timed out
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise ConvertAttnError(f"the Hub refused '{model}': {first_line(error)}") from None
        return None
    return {sibling.rfilename for sibling in info.siblings or []}
