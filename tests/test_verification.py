"""Self-checks by running: what is right passes, every planted lie is caught, nothing is written where one is."""

from __future__ import annotations

import ast
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Command, config_of, edit_config, edit_tensors, save_tiny
from tiny import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama

from convert_attn import ConvertAttnError, UsageError, convert, verify
from convert_attn.convert import isolated
from convert_attn.convert.archs import architectures
from convert_attn.convert.archs.base import Architecture, Norm
from convert_attn.convert.archs.packings import FusedBlocks
from convert_attn.convert.checkpoint.source import Origin, Source
from convert_attn.convert.conversion import run
from convert_attn.convert.inspection.families import families
from convert_attn.convert.isolated import behaviour
from convert_attn.convert.publish.push import ready_to_push
from convert_attn.convert.samples import sample_path
from convert_attn.convert.targets import gpt2_gqa, llama_mla, targets
from convert_attn.convert.verification import cut
from convert_attn.convert.verification import folder as folders
from convert_attn.convert.verification.process import Isolated
from convert_attn.convert.verification.source import check_source

SAMPLES = {"gpt2": sample_path("gpt2"), "llama": sample_path("llama")}
FORMS: dict[str, dict[str, Any]] = {
    "gqa": {"to": "gqa", "groups": 2},
    "mqa": {"to": "mqa"},
    "mla": {"to": "mla", "cache_ratio": 0.5},
}


def _tiny(folder: Path, model_type: str, **options: Any) -> Path:
    """A tiny checkpoint with a tokenizer."""
    save_tiny(folder, model_type, **options)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SAMPLES["llama"] / name, folder / name)
    return folder


# what is right


@pytest.mark.parametrize("form", FORMS)
def test_a_conversion_is_run_and_told_of(tmp_path: Path, model_type: str, form: str) -> None:
    source = _tiny(tmp_path / "in", model_type)
    if families()[model_type][form].refused:
        pytest.skip("no such class")
    result = convert(source, **FORMS[form], output=tmp_path / "out")
    assert result.verified is not None
    figures = result.verified.figures
    assert figures["decodes"] < 1e-3
    assert figures["generates"] < 1e-3
    assert figures["around_attention"] < 1e-3
    assert max(figures["block_errors"].values()) < 1e-4
    assert sum(figures["cached_numbers"]) * 4 == result.plan.cache_bytes[1]
    again = verify(result.output, source)
    assert again.figures["cached_numbers"] == figures["cached_numbers"]
    assert again.figures["tokenizer"]
    assert again.figures["decodes"] < 1e-3


def test_verify_reads_the_weights_of_our_latent_classes_back(tmp_path: Path) -> None:
    for model_type, options in (("gpt2", {"rank": 24}), ("qwen2", {"rank": 24, "rope_dim": 8})):
        made = convert(
            save_tiny(tmp_path / model_type, model_type), to="mla", **options, output=tmp_path / f"{model_type}o"
        )
        errors = verify(made.output).figures["block_errors"]
        assert len(errors) == 2
        assert max(errors.values()) < 1e-4
    norm = convert(tmp_path / "gpt2", to="mla", rank=24, latent_norm=True, output=tmp_path / "normed")
    assert max(verify(norm.output).figures["block_errors"].values()) < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_run_in_the_dtype_that_is_stored(tmp_path: Path, dtype: str) -> None:
    result = convert(save_tiny(tmp_path / "in", "llama"), to="gqa", groups=4, dtype=dtype, output=tmp_path / "out")
    assert result.verified is not None
    figures = result.verified.figures
    assert figures["dtype"] == dtype
    assert 0 < max(figures["block_errors_stored"].values()) < 0.1


def test_a_large_model_is_cut_to_first_middle_and_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SMALL", 0)
    source = save_tiny(tmp_path / "in", "mistral", num_hidden_layers=7, sliding_window=9)
    result = convert(source, to="mla", rank=32, rope_dim=8, output=tmp_path / "out")
    assert result.verified is not None
    assert result.verified.figures["cached_numbers"] == [40.0] * 3
    assert len(result.verified.figures["block_errors"]) == 3
    assert {path.name for path in result.output.iterdir() if path.is_dir()} == set()
    numbered = save_tiny(tmp_path / "numbered", "gpt2", num_hidden_layers=5, scale_attn_by_inverse_layer_idx=True)
    assert cut.checked_layers(config_of(numbered), 5, 1) == (0, 1, 2)
    assert (
        verify(convert(numbered, to="gqa", groups=2, output=tmp_path / "n").output, numbered).figures["decodes"] < 1e-3
    )


def test_a_cut_keeps_each_layer_its_own_settings() -> None:
    raw = {
        "model_type": "llama_mla",
        "num_hidden_layers": 4,
        "kv_lora_rank": 9,
        "kv_lora_ranks": [9, 3, 5, 4],
        "qk_rope_head_dim": 2,
        "rope_inv_freq": [[0.1], [0.2], [0.3], [0.4]],
        "auto_map": {"AutoConfig": "theirs.Config"},
    }
    made = cut.cut_config(raw, (0, 2, 3), 4)
    assert made["kv_lora_ranks"] == [9, 5, 4]
    assert made["rope_inv_freq"] == [[0.1], [0.3], [0.4]]
    assert made["num_hidden_layers"] == 3
    assert "auto_map" not in made
    assert cut.cut_config(raw, (1, 2, 3), 4)["kv_lora_rank"] == 5
    qwen = {"model_type": "qwen2", "num_hidden_layers": 6, "use_sliding_window": True, "sliding_window": 4}
    kinds = cut.cut_config(qwen | {"max_window_layers": 3}, (0, 3, 5), 6)["layer_types"]
    assert kinds == ["full_attention", "sliding_attention", "sliding_attention"]


def test_blocks_are_found_by_their_numbers() -> None:
    names = [f"model.layers.{n}.mlp.experts.{e}.w1" for n in range(3) for e in range(8)] + ["model.norm.weight"]
    assert cut.find_blocks(names) == cut.Blocks("model.layers.", 3)
    assert cut.find_blocks(["h.0.ln_1.weight", "h.1.ln_1.weight"]) == cut.Blocks("h.", 2)
    assert cut.find_blocks(["weight"]) == cut.Blocks("", 0)


# the six lies, and more


def _lying_plan(folder: Path, arch: Architecture, monkeypatch: pytest.MonkeyPatch) -> Any:
    known = architectures() | {arch.model_type: arch}
    monkeypatch.setattr(folders, "architectures", lambda: known)
    return folders.as_it_is(Source.open(Origin(name="lie", folder=folder)))


def test_lie_1_interleaved_rotary_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class turns neighbouring dimensions, our facts say halves."""
    source = save_tiny(tmp_path / "in", "llama")

    def neighbours(x: torch.Tensor) -> torch.Tensor:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    monkeypatch.setattr(modeling_llama, "rotate_half", neighbours)
    with pytest.raises(ConvertAttnError, match=r"LlamaAttention of transformers .* does not compute what is read"):
        convert(source, **FORMS["gqa"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lie_2_qkv_fused_per_head_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-NeoX stores [H, 3, d]; these facts say q, k, v in blocks of the same shape."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = AutoConfig.for_model("gpt_neox", **sizes, vocab_size=97, max_position_embeddings=64, rotary_pct=1.0)
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(tmp_path / "in")
    claimed = Architecture(
        model_type="gpt_neox",
        base="gpt_neox.",
        block="layers.{layer}.",
        qkv=FusedBlocks("attention.query_key_value"),
        output="attention.dense",
        norm=Norm("input_layernorm"),
        position="rope",
        config_kv_heads=None,
    )
    with pytest.raises(ConvertAttnError, match=r"GPTNeoXAttention .* does not compute what is read"):
        check_source(_lying_plan(tmp_path / "in", claimed, monkeypatch))


def _edit_code(folder: Path, before: str, after: str) -> None:
    """Change the code that a folder carries."""
    path = folder / "transformers_api.py"
    code = path.read_text()
    assert code.count(before) == 1
    path.write_text(code.replace(before, after))


def _ignores_its_cache(folder: Path) -> None:
    """The code in a folder takes the cache from its arguments and drops it: what became of a renamed argument."""
    _edit_code(folder, "    return found\n\n\ndef _is_cache", "    return None\n\n\ndef _is_cache")


@pytest.mark.parametrize("name", ["gpt2_gqa", "gpt2_mla", "llama_mla"])
def test_lie_3_a_swallowed_cache_is_caught(tmp_path: Path, name: str) -> None:
    model_type = name.partition("_")[0]
    form = FORMS["gqa"] if name.endswith("gqa") else {"to": "mla", "rank": 24}
    made = convert(save_tiny(tmp_path / "in", model_type), **form, output=tmp_path / "out").output
    _ignores_its_cache(made)
    with pytest.raises(UsageError, match=r"code that is not of this version .* or convert the original again"):
        verify(made)
    with pytest.raises(
        ConvertAttnError, match=r"(tokens in its cache after|does not decode with its cache).*again with"
    ):
        verify(made, trust_remote_code=True)
    with pytest.raises(ConvertAttnError, match="cache"):
        ready_to_push(made, trust_remote_code=True)


def test_lie_3_is_caught_in_a_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(*arguments: Any) -> Any:
        warnings = write_side_files(*arguments)
        _ignores_its_cache(arguments[1])
        return warnings

    write_side_files = run.write_side_files
    monkeypatch.setattr(run, "write_side_files", lie)
    with pytest.raises(ConvertAttnError, match=r"nothing was written: the result .* cache"):
        convert(save_tiny(tmp_path / "in"), **FORMS["gqa"], output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def _with_target(monkeypatch: pytest.MonkeyPatch, module: Any, **changes: Any) -> None:
    lied = replace(module.TARGET, **changes)
    honest = [target for target in targets() if target.name != lied.name]
    monkeypatch.setattr(sys.modules["convert_attn.convert.targets"], "targets", lambda: [lied, *honest])


def test_lie_4_a_dropped_bias_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = gpt2_gqa.TARGET.tensors

    def without_bias(*arguments: Any) -> dict[str, torch.Tensor]:
        made = tensors(*arguments)
        return made | {"attn.c_attn.bias": torch.zeros_like(made["attn.c_attn.bias"])}

    _with_target(monkeypatch, gpt2_gqa, tensors=without_bias)
    with pytest.raises(ConvertAttnError, match=r"does not compute in float32 what was converted"):
        convert(save_tiny(tmp_path / "in"), **FORMS["gqa"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lie_4_a_bias_that_the_source_class_drops_is_caught(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "in", "llama")
    edit_tensors(
        source, lambda held: held.update({f"model.layers.{n}.self_attn.q_proj.bias": torch.ones(64) for n in (0, 1)})
    )
    for form in FORMS.values():
        with pytest.raises(ConvertAttnError, match=r"q_proj.bias|does not compute what is read"):
            convert(source, **form, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lie_5_a_wrong_scale_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure = llama_mla.TARGET.configure
    _with_target(monkeypatch, llama_mla, configure=lambda blueprint: configure(blueprint) | {"softmax_scale": 0.5})
    with pytest.raises(ConvertAttnError, match=r"does not compute in float32 what was converted"):
        convert(save_tiny(tmp_path / "in", "llama"), **FORMS["mla"], output=tmp_path / "out")


def test_lie_6_a_wrong_tokenizer_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(*arguments: Any) -> Any:
        warnings = write_side_files(*arguments)
        held = PreTrainedTokenizerFast.from_pretrained(arguments[1])
        held.eos_token = "!"
        held.save_pretrained(arguments[1])
        return warnings

    write_side_files = run.write_side_files
    monkeypatch.setattr(run, "write_side_files", lie)
    with pytest.raises(ConvertAttnError, match=r"has a tokenizer with another"):
        convert(_tiny(tmp_path / "in", "llama"), **FORMS["gqa"], output=tmp_path / "out")


def test_scores_with_a_cap_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 caps scores at 50, which input of ordinary size does not show."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    more = {"head_dim": 8, "intermediate_size": 48, "vocab_size": 97, "max_position_embeddings": 64}
    config = AutoConfig.for_model("gemma2", **sizes, **more, query_pre_attn_scalar=8, sliding_window=64)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(tmp_path / "in")
    claimed = replace(architectures()["gemma"], model_type="gemma2")
    plan = _lying_plan(tmp_path / "in", claimed, monkeypatch)
    check_source(plan)  # the cap is read off the class, whatever the family's file says
    assert plan.geometry.softcaps == (50.0, 50.0)
    uncapped = replace(plan.blueprint, sizes=replace(plan.geometry, softcaps=()))
    with pytest.raises(ConvertAttnError, match=r"Gemma2Attention .* does not compute what is read"):
        check_source(replace(plan, blueprint=uncapped))


def test_a_result_that_differs_outside_attention_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure = llama_mla.TARGET.configure
    _with_target(
        monkeypatch, llama_mla, configure=lambda blueprint: configure(blueprint) | {"embedding_multiplier": 1.0}
    )
    with pytest.raises(ConvertAttnError, match=r"differs from its source outside attention"):
        convert(save_tiny(tmp_path / "in", "gemma"), **FORMS["mla"], output=tmp_path / "out")


def test_verify_against_another_model_says_so(tmp_path: Path) -> None:
    made = convert(save_tiny(tmp_path / "in", "llama"), **FORMS["gqa"], output=tmp_path / "out").output
    other = save_tiny(tmp_path / "other", "llama", seed=1)
    with pytest.raises(ConvertAttnError, match="differs from its source outside attention"):
        verify(made, other)


def test_a_cache_of_another_size_is_caught(tmp_path: Path) -> None:
    made = convert(save_tiny(tmp_path / "in"), **FORMS["gqa"], output=tmp_path / "out").output
    _edit_code(made, "cache.update(key, value,", "cache.update(torch.cat([key, key], -1), value,")
    _edit_code(made, "    return held\n", "    return held[0][..., : key.shape[-1]], held[1]\n")
    with pytest.raises(ConvertAttnError, match=r"caches 96 numbers per token .* expected 64"):
        verify(made, trust_remote_code=True)


# behaviour by itself


def _llama() -> Any:
    return tiny_model("llama")


def test_a_model_that_ignores_the_mask_is_caught() -> None:
    model = _llama()
    forward = model.forward
    model.forward = lambda attention_mask=None, **kwargs: forward(**kwargs)
    model.forward.__signature__ = __import__("inspect").signature(type(model).forward)
    with pytest.raises(behaviour.MisbehaviourError, match="left-padded"):
        behaviour.check_decode(model, behaviour.probe_tokens(model.config))


def test_a_model_without_a_place_for_its_cache_is_caught() -> None:
    model = _llama()
    forward = model.forward
    model.forward = lambda input_ids, use_cache=False, attention_mask=None, position_ids=None, **kwargs: forward(
        input_ids=input_ids, use_cache=use_cache, return_dict=True
    )
    with pytest.raises(behaviour.MisbehaviourError, match="has no argument of that name"):
        behaviour.check_decode(model, behaviour.probe_tokens(model.config))


@pytest.mark.parametrize("context", [5, 9, 12, 64])
def test_short_contexts_are_probed_as_far_as_they_go(context: int) -> None:
    model = tiny_model("gpt2", max_position_embeddings=context)
    ids = behaviour.probe_tokens(model.config)
    assert ids.shape == (1, min(16, context))
    assert behaviour.check_decode(model, ids) < 1e-3
    assert behaviour.check_generate(model, ids) < 1e-3


# the process


def test_the_isolated_files_import_nothing_of_this_package() -> None:
    allowed = {"torch", "transformers", "safetensors", *sys.stdlib_module_names}
    files = sorted(Path(isolated.__path__[0]).glob("*.py"))
    assert len(files) > 3
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert all(name.name.partition(".")[0] in allowed for name in node.names), file
            if isinstance(node, ast.ImportFrom):
                assert node.level == 1 or (node.module or "").partition(".")[0] in allowed, file


def test_a_process_that_dies_is_a_sentence(tmp_path: Path) -> None:
    process = Isolated()
    try:
        process.start()
        with pytest.raises(ConvertAttnError, match=r"the process that runs 'x' .* ended"):
            process.run({"folder": "x"})
    finally:
        process.stop()


def test_the_process_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    process = Isolated()
    process.start()
    assert list(tmp_path.iterdir())
    process.stop()
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_never_asked_ends_at_once() -> None:
    """The command line starts it first; a refusal is not to wait for what it imports."""
    process = Isolated()
    process.start()
    begin = time.perf_counter()
    process.stop()
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(("width", "context", "length"), [(64, 4096, 16), (2048, 4096, 8), (2048, 4, 4)])
def test_wide_models_are_asked_fewer_tokens(width: int, context: int, length: int) -> None:
    config = AutoConfig.for_model("llama", hidden_size=width, max_position_embeddings=context)
    assert behaviour.probe_length(config) == length
    assert behaviour.probe_tokens(config).shape == (1, length)
    assert all(sum(pieces) == length for pieces in behaviour.schedules(length).values())


def test_broken_folders_are_sentences(tmp_path: Path, command: Command) -> None:
    made = convert(save_tiny(tmp_path / "in"), **FORMS["gqa"], output=tmp_path / "out").output
    cases: list[tuple[str, Callable[[Path], Any]]] = [
        ("generation_config", lambda folder: (folder / "generation_config.json").write_text("{")),
        ("tokenizer", lambda folder: (folder / "tokenizer.json").write_text("{")),
        ("gpt2_backbone", lambda folder: (folder / "gpt2_backbone.py").unlink()),
        ("refused|expects", lambda folder: edit_config(folder, num_key_value_heads=4)),
    ]
    for number, (match, damage) in enumerate(cases):
        folder = tmp_path / f"broken{number}"
        shutil.copytree(made, folder)
        damage(folder)
        outcome = command("verify", folder)
        assert outcome.code == 1, outcome
        assert outcome.err.startswith("Error: ")
        assert outcome.err.count("\n") == 1
        assert __import__("re").search(match, outcome.err), outcome.err


def test_verify_on_the_command_line(tmp_path: Path, command: Command) -> None:
    made = convert(_tiny(tmp_path / "in", "llama"), **FORMS["mqa"], output=tmp_path / "out").output
    outcome = command("verify", made, "--against", tmp_path / "in")
    assert outcome.code == 0, outcome.err
    assert "works in transformers" in outcome.out
    assert "cache, measured: 16 numbers per token and layer" in outcome.out
    assert '"decodes"' in command("verify", made, "--json").out
    assert command("verify", tmp_path / "nowhere").code == 2
