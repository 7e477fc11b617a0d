"""A converted folder -> a repository of the Hub, in one commit that is there whole or not at all.

`HfApi.upload_folder` streams a folder as several commits where hf_xet is installed: interrupted, it leaves a repository
that holds half a checkpoint. `create_commit` uploads first and commits once. What an attempt has uploaded, the next one
finds there and skips, so interrupted pushes are resumed by pushing again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]

from convert_attn.convert.checkpoint.retry import chain, may_pass, persistently, response_of
from convert_attn.convert.checkpoint.writer import is_temporary
from convert_attn.convert.errors import ConvertAttnError, UsageError
from convert_attn.convert.planning.provenance import describe, read_provenance
from convert_attn.convert.progress import Progress, silent
from convert_attn.convert.verification.folder import verify

# of a checkpoint that was there before: beside the new files, loaders could take them for the model
_STALE = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json", "*.py")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What is on the Hub now.

    Attributes:
        repo: its full name, with the namespace.
        commit: the commit that holds the folder.
        files: how many files the folder has.
        nbytes: their size in bytes.
    """

    repo: str
    url: str
    commit: str
    files: int
    nbytes: int


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Pushed:
    """Verify a folder that this package made and put it on the Hub as one commit.

    Args:
        repo: NAME or NAMESPACE/NAME; made where it is not there.
        private: make it private; refused for one that is there and public.
        overwrite: replace a checkpoint there that this package did not make (it stays in the repository's history).
        trust_remote_code: run code in the folder that is not of this version of the package.

    Raises:
        UsageError: the folder is no whole conversion, or the repository is another's.
        ConvertAttnError: no token, no rights, or the Hub failed again and again; nothing was committed.
    """
    path = Path(folder)
    check_login(repo)
    provenance = ready_to_push(path, progress, trust_remote_code=trust_remote_code)
    api = HfApi()
    with _in_words(repo), _quiet():
        full = persistently(lambda: api.create_repo(repo, private=private or None, exist_ok=True).repo_id)
        files = {file.relative_to(path).as_posix(): file for file in _files(path)}
        attempt = _Attempt(
            api=api,
            repo=full,
            files=files,
            message=f"{describe(provenance)}, by convert-attn",
            private=private,
            overwrite=overwrite,
        )
        commit = persistently(attempt)
    nbytes = sum(file.stat().st_size for file in files.values())
    return Pushed(repo=full, url=f"{api.endpoint}/{full}", commit=commit, files=len(files), nbytes=nbytes)


def check_login(repo: str) -> None:
    """What can be refused before any work: the repository's name, offline mode, no token, a token without rights.

    Raises:
        UsageError: the name.
        ConvertAttnError: the others.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"'{repo}' is no name for a Hub repository: {_line(error)}") from None
    if constants.HF_HUB_OFFLINE:
        raise ConvertAttnError(f"cannot push to '{repo}': offline mode is on (HF_HUB_OFFLINE)")
    if get_token() is None:
        raise ConvertAttnError(
            f"cannot push to '{repo}': there is no Hub token; run `hf auth login` or set HF_TOKEN, with write rights"
        )
    with _in_words(repo):
        user: dict[str, Any] = persistently(HfApi().whoami)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConvertAttnError(
            f"cannot push to '{repo}': the token of '{user.get('name')}' may only read; make one with write rights "
            "and give it to `hf auth login`"
        )


def ready_to_push(folder: Path, progress: Progress = silent, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Check that a folder is a whole conversion, by running it.

    Returns:
        its `convert_attn` block.

    Raises:
        UsageError: no folder, half written, or not made by this package.
        ConvertAttnError: it does not verify, or a link in it leads out of it.
    """
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is no folder: give one that convert-attn made")
    if is_temporary(folder):
        raise UsageError(f"'{folder}' is what an unfinished conversion left; run the conversion again")
    _, provenance = read_provenance(folder)
    root = folder.resolve()
    for file in _files(folder):
        if not file.resolve().is_relative_to(root):
            raise UsageError(f"'{file}' is a link out of the folder and is not pushed: remove it or copy the file")
    verify(folder, trust_remote_code=trust_remote_code, progress=progress)
    return provenance


def _files(folder: Path) -> list[Path]:
    """Everything to push: no hidden file (.git, .env), no byte code."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(_left_out(part) for part in path.relative_to(folder).parts)]


def _left_out(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One try to commit. It looks afresh at what is there, so that it may be repeated whatever became of the last."""

    api: HfApi
    repo: str
    files: dict[str, Path]
    message: str
    private: bool
    overwrite: bool

    def __call__(self) -> str:
        """The commit that holds the folder: a new one, or the last where it does already."""
        info = self.api.model_info(self.repo)
        if self.private and not info.private:
            raise UsageError(f"'{self.repo}' is there and public: drop --private, make it private there, or rename")
        names = {sibling.rfilename for sibling in info.siblings or []}
        stale = sorted(
            name for name in names - self.files.keys() if "/" not in name and any(Path(name).match(p) for p in _STALE)
        )
        if (stale or "config.json" in names) and not self.overwrite and not self._is_conversion(info.sha, names):
            raise UsageError(
                f"'{self.repo}' holds a model that convert-attn did not make: push to another name, or give --overwrite"
            )
        # files that are there as they are, because an answer was lost or the same was pushed before, are left out by
        # the client; where that leaves nothing, there is no new commit
        commit = self.api.create_commit(
            self.repo,
            operations=[
                *(CommitOperationAdd(name, str(file)) for name, file in self.files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=self.message,
            parent_commit=info.sha,
        )
        return str(commit.oid)

    def _is_conversion(self, commit: str | None, names: set[str]) -> bool:
        if "config.json" not in names:
            return False
        path = hf_hub_download(self.repo, "config.json", revision=commit)
        try:
            read_provenance(Path(path).parent)
        except ConvertAttnError:
            return False
        return True


@contextmanager
def _in_words(repo: str) -> Iterator[None]:
    """Failures of the Hub as one sentence."""
    try:
        yield
    except (ConvertAttnError, KeyboardInterrupt):
        raise
    except LocalTokenNotFoundError:
        raise ConvertAttnError(f"cannot push to '{repo}': there is no Hub token; run `hf auth login`") from None
    except Exception as error:
        response = response_of(error)
        if response is not None and response.status_code in (401, 402, 403, 404):
            raise ConvertAttnError(_refused(repo, response.status_code, error)) from None
        if response is not None or may_pass(error, None):
            raise ConvertAttnError(
                f"pushing to '{repo}' failed and nothing was committed: {_line(error)}; run it again to resume"
            ) from None
        raise


def _refused(repo: str, status: int, error: Exception) -> str:
    if status == 402:
        return f"the Hub refused '{repo}': {_line(error)}"
    who = "the token is not valid" if status == 401 else "its token has no right to write there"
    return f"cannot push to '{repo}': {who}; check the name, and give `hf auth login` a token with write rights"


def _line(error: BaseException) -> str:
    """The first line of the error that caused all others."""
    last = list(chain(error))[-1]
    return (str(last).strip().splitlines() or [type(last).__name__])[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's own warnings of every retry; its bars only where somebody looks."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        client.setLevel(level)
