"""A model as typed -> files in a local folder: bundled sample, folder, or Hub id at a pinned commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.samples import SAMPLES, sample_path
from convert_attn.convert.source import SIDE_FILES, Origin

_SAMPLE = "sample:"
_ONLINE_CHECK_SECONDS = 4.0
_WEIGHTS = {"safetensors": ["*.safetensors"], "bin": ["pytorch_model*.bin"]}


def resolve(model: str, revision: str | None = None, *, weights: bool = True) -> Origin:
    """The files of a model, downloaded where they are not here yet.

    Args:
        model: Hub id, local folder, or sample:NAME.
        revision: branch, tag or commit, for Hub ids only.
        weights: False for config and side files only.

    Raises:
        UsageError: nothing of that name.
        ConvertAttnError: it exists but cannot be had.
    """
    if model.startswith(_SAMPLE):
        name = model.removeprefix(_SAMPLE)
        if name not in SAMPLES:
            raise UsageError(f"sample '{name}' is not known; choose one of {', '.join(SAMPLES)}")
        return Origin(model, sample_path(name))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"--revision is for Hub ids, but '{model}' is a local folder: drop it")
        return Origin(model, folder)
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"'{model}' is neither a folder nor a Hub id: give a folder that holds a checkpoint")
    return _from_hub(model, revision, weights)


def _from_hub(model: str, revision: str | None, weights: bool) -> Origin:
    """The snapshot of a Hub id: of the newest commit when the Hub answers, else of what the cache has."""
    commit, kind = _ask_hub(model, revision)
    patterns = [*SIDE_FILES, "README.md", *(_WEIGHTS[kind] if weights else [])]
    offline = commit is None
    try:
        folder = snapshot_download(
            model, revision=commit or revision, allow_patterns=patterns, local_files_only=offline
        )
    except LocalEntryNotFoundError:
        raise ConvertAttnError(_no_network(model)) from None
    except (HfHubHTTPError, OSError) as error:
        raise ConvertAttnError(f"downloading '{model}' failed: {_first_line(error)}; run again to resume") from None
    return Origin(model, Path(folder), Path(folder).name)


def _no_network(model: str) -> str:
    why = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    return (
        f"'{model}' is not a local folder and not in the cache, and {why}: download it where there is a network "
        f"(`hf download {model}`) and give the folder, or try a bundled model such as sample:gpt2"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _ask_hub(model: str, revision: str | None) -> tuple[str | None, str]:
    """The commit of a revision and the format of its weights; (None, ...) where the Hub does not answer."""
    if constants.HF_HUB_OFFLINE:
        return None, "safetensors"
    try:
        info = HfApi().model_info(model, revision=revision, timeout=_ONLINE_CHECK_SECONDS)
    except GatedRepoError:
        raise ConvertAttnError(
            f"'{model}' is gated: accept its terms on its Hub page, then run `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"'{model}' has no revision '{revision}'") from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"'{model}' is not a local folder, and the Hub has no such model (or it is private: `hf auth login`)"
        ) from None
    except HFValidationError as error:
        raise UsageError(f"'{model}' is neither a folder nor a valid Hub id: {_first_line(error)}") from None
    except Exception as error:  # the HTTP client's own exceptions: no network, refused, timed out
        if isinstance(error, HfHubHTTPError):
            raise ConvertAttnError(f"the Hub refused '{model}': {_first_line(error)}") from None
        return None, "safetensors"
    names = [sibling.rfilename for sibling in info.siblings or []]
    return info.sha, "safetensors" if any(name.endswith(".safetensors") for name in names) else "bin"
