"""Push to and pull from a Hub: the real client against a local server, with everything that goes wrong between."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoints import Command, config_of, contents, json_of, reshard, save_tiny, tensors_of
from hub_server import Fault, Hub, Repo, serve
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import _http
from tiny import load, logits_of

from convert_attn import ConvertAttnError, UsageError, convert, inspect
from convert_attn.convert.checkpoint import retry
from convert_attn.convert.publish import push as pushing
from convert_attn.convert.publish.push import push, ready_to_push

FAST = {"to": "gqa", "groups": 2, "method": "mean"}


@pytest.fixture
def waits() -> list[float]:
    """How long was waited, in seconds: nobody sleeps in these tests."""
    return []


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    """A Hub, a token that may write to it, and an empty cache."""
    with serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        for module in (_http, retry):
            monkeypatch.setattr(module.time, "sleep", waits.append)
        huggingface_hub.close_session()  # one that was made offline refuses
        yield served
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion in two shards and a class of ours."""
    folder = tmp_path_factory.mktemp("converted")
    convert(reshard(save_tiny(folder / "in")), **FAST, output=folder / "out")
    return folder / "out"


def files_on(hub: Hub, repo: str) -> dict[str, bytes]:
    """The files of the last commit."""
    return {name: data for name, data in hub.repos[repo].commits[-1][2].items() if name != ".gitattributes"}


def assert_whole(hub: Hub, repo: str, folder: Path) -> None:
    """One commit after the first, and it holds the folder byte for byte."""
    assert len(hub.repos[repo].commits) == 2
    assert files_on(hub, repo) == contents(folder)


# --- pushing

LOAD = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "convert_attn":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/tiny", trust_remote_code=True, dtype=torch.float32).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    torch.save(model(torch.load("ids.pt")).logits, "logits.pt")
"""


def test_what_is_pushed_loads_by_its_id_in_a_fresh_process(
    hub: Hub, converted: Path, tmp_path: Path, command: Command
) -> None:
    outcome = command("push", converted, "tiny", "--private")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(
        rf"{len(contents(converted))} files \(.* MB\) are at {hub.url}/org/tiny as commit \w+", outcome.out
    )
    assert_whole(hub, "org/tiny", converted)
    assert hub.repos["org/tiny"].private
    assert hub.repos["org/tiny"].commits[-1][1] == "in to GQA-2 (mean), by convert-attn"
    ids = torch.arange(1, 25)[None]
    torch.save(ids, tmp_path / "ids.pt")
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path / "home")} | environment,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), load(converted)(ids).logits)


def test_convert_pushes_when_it_is_done(hub: Hub, tmp_path: Path, command: Command) -> None:
    save_tiny(tmp_path / "in", "llama")
    options = ["--to", "gqa", "--groups", "2", "--output", tmp_path / "out", "--json"]
    outcome = command(tmp_path / "in", *options, "--push", "other/tiny")
    assert (outcome.code, outcome.err) == (0, "")
    pushed = json.loads(outcome.out)["pushed"]
    assert (pushed["repo"], pushed["commit"]) == ("other/tiny", hub.repos["other/tiny"].commits[-1][0])
    assert (pushed["files"], pushed["nbytes"]) == (
        len(contents(tmp_path / "out")),
        sum(len(data or b"") for data in contents(tmp_path / "out").values()),
    )
    assert_whole(hub, "other/tiny", tmp_path / "out")
    assert not hub.repos["other/tiny"].private


def test_the_same_folder_again_makes_no_new_commit(hub: Hub, converted: Path) -> None:
    first = push(converted, "org/tiny")
    assert push(converted, "org/tiny") == first
    assert_whole(hub, "org/tiny", converted)


def test_what_was_there_before_does_not_stay_beside_it(hub: Hub, converted: Path, tmp_path: Path) -> None:
    """A single file goes before shards when a model is loaded: a stale one would be the model."""
    convert(save_tiny(tmp_path / "in", "llama"), to="mqa", output=tmp_path / "single")
    push(tmp_path / "single", "org/tiny")
    assert "model.safetensors" in files_on(hub, "org/tiny")
    push(converted, "org/tiny")
    assert files_on(hub, "org/tiny") == contents(converted)


def test_hidden_files_and_byte_code_stay_here(hub: Hub, converted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name, data in contents(converted).items():
        (folder / name).write_bytes(data or b"")
    (folder / ".env").write_text("SECRET=1")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/x.pyc").write_bytes(b"0")
    push(folder, "org/tiny")
    assert_whole(hub, "org/tiny", converted)


# --- what goes wrong on the way

LOST = None
FAULTS = {
    "create 500": [Fault("POST /api/repos/create", 500)],
    "create lost after it was done": [Fault("POST /api/repos/create", LOST, done=True)],
    "info 502": [Fault("GET /api/models/org/tiny$", 502)],
    "card 500": [Fault("POST /api/validate-yaml", 500)],
    "preupload 503": [Fault("preupload", 503)],
    "batch dropped": [Fault("objects/batch", LOST)],
    "upload 500": [Fault("PUT /lfs", 500)],
    "upload dropped": [Fault("PUT /lfs", LOST)],
    "verify 500": [Fault("POST /verify", 500)],
    "commit 500": [Fault("/commit/", 500)],
    "commit dropped": [Fault("/commit/", LOST)],
    "commit 409": [Fault("/commit/", 409)],
    "commit 412": [Fault("/commit/", 412)],
    "commit 429": [Fault("/commit/", 429, {"Retry-After": "7"})],
    "commit done but its answer lost": [Fault("/commit/", LOST, done=True)],
    "commit done but answered 504": [Fault("/commit/", 504, done=True)],
    "everything once": [
        Fault(part, 500) for part in ("repos/create", "validate-yaml", "preupload", "batch", "PUT /lfs", "/commit/")
    ],
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_failure_that_passes_ends_in_one_whole_commit(
    case: str, hub: Hub, converted: Path, waits: list[float]
) -> None:
    hub.faults = [Fault(**vars(fault)) for fault in FAULTS[case]]
    pushed = push(converted, "org/tiny")
    assert hub.faults == []
    assert waits
    assert_whole(hub, "org/tiny", converted)
    assert pushed.commit == hub.repos["org/tiny"].commits[-1][0]
    if case == "commit 429":
        assert 7 in waits


@pytest.mark.parametrize(("request_", "status"), [("/commit/", 500), ("PUT /lfs", LOST), ("repos/create", 503)])
def test_a_failure_that_stays_is_said_and_nothing_is_committed(
    request_: str, status: int | None, hub: Hub, converted: Path, waits: list[float], command: Command
) -> None:
    hub.faults = [Fault(request_, status) for _ in range(200)]
    outcome = command("push", converted, "org/tiny")
    assert outcome.code == 1
    assert re.fullmatch(
        r"Error: pushing to 'org/tiny' failed and nothing was committed: [^\n]+; run it again to resume\n",
        outcome.err,
    )
    assert sum(waits) < 600
    assert all(len(repo.commits) == 1 for repo in hub.repos.values())
    # and what was uploaded is not uploaded again
    hub.faults, uploaded = [], len(hub.blobs)
    before = len(hub.requests)
    push(converted, "org/tiny")
    assert_whole(hub, "org/tiny", converted)
    assert sum("PUT /lfs" in asked for asked in hub.requests[before:]) == 2 - uploaded


def test_a_push_that_fails_after_a_conversion_leaves_the_folder(hub: Hub, tmp_path: Path, command: Command) -> None:
    save_tiny(tmp_path / "in", "llama")
    hub.faults = [Fault("/commit/", 500) for _ in range(20)]
    outcome = command(tmp_path / "in", "--to", "mqa", "--output", tmp_path / "out", "--push", "org/tiny")
    assert outcome.code == 1
    assert re.search(r"`convert-attn push \S+out org/tiny` tries again", outcome.err)
    assert ready_to_push(tmp_path / "out")["to"] == "mqa"


# --- what is refused


def _read_only(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "hf_read")


def _unknown(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "hf_other")


def _none(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("HF_TOKEN")
    patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    patch.setattr(pushing, "get_token", lambda: None)


def _offline(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


LOGINS = {
    _none: r"there is no Hub token; run `hf auth login` or set HF_TOKEN",
    _unknown: r"the token is not valid; .* `hf auth login`",
    _read_only: r"the token of 'org' may only read",
    _offline: r"offline mode is on \(HF_HUB_OFFLINE\)",
}


@pytest.mark.parametrize("login", LOGINS)
def test_without_the_right_token_nothing_is_begun(
    login: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    save_tiny(tmp_path / "in", "llama")
    login(hub, monkeypatch)
    outcome = command(tmp_path / "in", "--to", "mqa", "--output", tmp_path / "out", "--push", "org/tiny")
    assert outcome.code == 1
    assert re.fullmatch(rf"Error: cannot push to 'org/tiny': [^\n]*{LOGINS[login]}[^\n]*\n", outcome.err)
    assert not (tmp_path / "out").exists()
    assert hub.repos == {}


def test_a_namespace_without_rights_is_said(hub: Hub, converted: Path) -> None:
    with pytest.raises(ConvertAttnError, match=r"'others/tiny': its token has no right to write there"):
        push(converted, "others/tiny")
    assert hub.repos == {}


@pytest.mark.parametrize("repo", ["", "a/b/c", "-x", "a b", "x.git", "a--b"])
def test_a_name_that_no_repository_can_have_is_refused(repo: str, hub: Hub, converted: Path) -> None:
    with pytest.raises(UsageError, match="is no name for a Hub repository"):
        push(converted, repo)
    assert hub.requests == []


def test_private_without_push_is_refused(tmp_path: Path, command: Command) -> None:
    outcome = command("sample:gpt2", "--to", "mqa", "--output", tmp_path / "out", "--private")
    assert (outcome.code, outcome.err) == (2, "Error: --private is for --push REPO: drop it\n")


def test_a_public_repository_does_not_become_private_silently(hub: Hub, converted: Path) -> None:
    hub.repos["org/tiny"] = Repo()
    hub.repos["org/tiny"].add("first", {})
    with pytest.raises(UsageError, match="'org/tiny' is there and public"):
        push(converted, "org/tiny", private=True)
    assert len(hub.repos["org/tiny"].commits) == 1


@pytest.mark.parametrize("files", [{"config.json": b"{}"}, {"model.safetensors": b"0"}, {"config.json": b"\xff"}])
def test_another_s_model_is_replaced_only_when_asked(files: dict[str, bytes], hub: Hub, converted: Path) -> None:
    hub.repos["org/tiny"] = Repo()
    hub.repos["org/tiny"].add("first", dict(files))
    with pytest.raises(UsageError, match="holds a model that convert-attn did not make"):
        push(converted, "org/tiny")
    assert len(hub.repos["org/tiny"].commits) == 1
    push(converted, "org/tiny", overwrite=True)
    assert_whole(hub, "org/tiny", converted)


def _half_written(folder: Path) -> Path:
    return folder.rename(folder.with_name(".out.partial-123"))


def _no_config(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


def _other_config(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    return folder


def _no_shard(folder: Path) -> Path:
    (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


def _cut(folder: Path) -> Path:
    os.truncate(folder / "model-00001-of-00002.safetensors", 1000)
    return folder


def _link_out(folder: Path) -> Path:
    (folder.parent / "secret").write_text("of the user")
    (folder / "notes.txt").symlink_to(folder.parent / "secret")
    return folder


REFUSED = {
    _half_written: r"is what an unfinished conversion left; run the conversion again",
    _no_config: r"is no folder that convert-attn made",
    _other_config: r"is no folder that convert-attn made",
    _no_shard: r"'model-00002-of-00002\.safetensors', which is missing from",
    _cut: r"is truncated or has bytes left over|no whole safetensors",
    _link_out: r"notes\.txt' is a link out of the folder and is not pushed",
    lambda folder: folder / "nowhere": r"is no folder: give one that convert-attn made",
}


@pytest.mark.parametrize("damage", REFUSED)
def test_only_a_whole_folder_of_ours_is_pushed(damage: Any, hub: Hub, converted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name, data in contents(converted).items():
        (folder / name).write_bytes(data or b"")
    with pytest.raises(ConvertAttnError, match=REFUSED[damage]):
        push(damage(folder), "org/tiny")
    assert hub.repos == {}


# --- pulling


def stored(hub: Hub, folder: Path, repo: str = "org/source", below: str = "", **options: Any) -> str:
    """A checkpoint folder as a repository; its commit."""
    files = {f"{below}{name}": data or b"" for name, data in contents(folder).items()}
    there = hub.repos.setdefault(repo, Repo(**options))
    return there.add("a checkpoint", files)


def test_a_model_is_pulled_by_id_and_then_from_the_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "in", "llama")
    (tmp_path / "in/README.md").write_text("---\nlicense: mit\n---\n")
    commit = stored(hub, tmp_path / "in")
    convert("org/source", **FAST, output=tmp_path / "online")
    found = config_of(tmp_path / "online")["convert_attn"]
    assert (found["source"], found["source_commit"]) == ("org/source", commit)
    data = ModelCard.load(tmp_path / "online/README.md").data
    assert (data.base_model, data.base_model_relation, data.license) == ("org/source", "finetune", "mit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    before = len(hub.requests)
    convert("org/source", **FAST, output=tmp_path / "offline/online")
    assert len(hub.requests) == before
    assert contents(tmp_path / "offline/online") == contents(tmp_path / "online")


def test_a_revision_is_pulled(hub: Hub, tmp_path: Path) -> None:
    first = stored(hub, save_tiny(tmp_path / "one", "llama", seed=1))
    stored(hub, save_tiny(tmp_path / "two", "llama", seed=2))
    for revision, name in ((first, "one"), (None, "two")):
        convert("org/source", to="gqa", groups=8, revision=revision, output=tmp_path / f"{name}-out")
        torch.testing.assert_close(logits_of(load(tmp_path / f"{name}-out")), logits_of(load(tmp_path / name)))
    with pytest.raises(UsageError, match="'org/source' has no revision 'v9'"):
        convert("org/source", **FAST, revision="v9", output=tmp_path / "out")


@pytest.mark.parametrize("where", ["hub", "offline", "folder"])
def test_a_subfolder_is_pulled_and_nothing_beside_it(
    where: str, hub: Hub, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = reshard(save_tiny(tmp_path / "models/a/in", "llama"))
    commit = stored(hub, source, below="a/in/")
    hub.repos["org/source"].commits[-1][2].update({"model.safetensors": b"not this", "a/config.json": b"{}"})
    model = str(tmp_path / "models") if where == "folder" else "org/source"
    options = ["--to", "gqa", "--groups", "8", "--subfolder", "a/in/"]
    if where == "offline":
        assert command(model, *options, "--output", tmp_path / "first").code == 0
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.close_session()
    outcome = command(model, *options, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    torch.testing.assert_close(logits_of(load(tmp_path / "out")), logits_of(load(source)))
    found = config_of(tmp_path / "out")["convert_attn"]
    assert found["source_subfolder"] == "a/in"
    assert found["source_commit"] == (None if where == "folder" else commit)
    assert "--subfolder a/in" in found["command"]
    assert not any("resolve" in asked and asked.endswith(f"{commit}/model.safetensors") for asked in hub.requests)
    looked = json.loads(command("inspect", model, "--subfolder", "a/in", "--json").out)
    assert looked["parameters"] == sum(tensor.numel() for tensor in tensors_of(source).values())


@pytest.mark.parametrize("subfolder", ["..", "../x", "a/../../x", "/etc", "a\\b"])
def test_a_subfolder_that_leads_out_is_refused(subfolder: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "models/in")
    with pytest.raises(UsageError, match="expected the name of a folder below"):
        convert(tmp_path / "models/in", **FAST, subfolder=subfolder, output=tmp_path / "out")


def test_a_subfolder_that_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    stored(hub, save_tiny(tmp_path / "in", "llama"))
    for model in ("org/source", str(tmp_path / "in")):
        with pytest.raises(UsageError, match="has no folder 'nowhere'"):
            convert(model, **FAST, subfolder="nowhere", output=tmp_path / "out")
    with pytest.raises(UsageError, match="'sample:gpt2' has none"):
        convert("sample:gpt2", **FAST, subfolder="x", output=tmp_path / "out")


@pytest.mark.parametrize("token", ["hf_write", "hf_none"])
def test_gated_missing_and_private_are_told_apart(
    token: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    folder = save_tiny(tmp_path / "in", "llama")
    stored(hub, folder, "org/gated", gated=True)
    stored(hub, folder, "org/private", private=True)
    with pytest.raises(ConvertAttnError, match=r"'org/gated' is gated: accept its terms .*`hf auth login`") as caught:
        convert("org/gated", **FAST, output=tmp_path / "out")
    assert type(caught.value) is ConvertAttnError
    with pytest.raises(UsageError, match=r"the Hub has no such model \(or it is private"):
        convert("org/missing", **FAST, output=tmp_path / "out")
    if token == "hf_none":
        with pytest.raises(UsageError, match=r"the Hub has no such model \(or it is private"):
            convert("org/private", **FAST, output=tmp_path / "out")
    else:
        assert inspect("org/private").model_type == "llama"
    assert not (tmp_path / "out").exists()


def test_a_download_that_breaks_off_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    stored(hub, save_tiny(tmp_path / "in", "llama"))
    hub.faults = [Fault(r"GET .*/resolve/.*model\.safetensors", status) for status in (500, None, 503)]
    convert("org/source", **FAST, output=tmp_path / "out")
    assert hub.faults == []
    assert json_of(tmp_path / "out/config.json")["num_key_value_heads"] == 2
