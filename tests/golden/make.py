"""Makes the golden checkpoints that are not there yet: see README.md."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from families import LATENTS, native_type
from safetensors.torch import save_file
from tiny import OWN, load, source_of, tiny_model

from convert_attn import convert
from convert_attn.convert.archs.cache_form import LatentCache
from convert_attn.convert.targets import targets

HERE = Path(__file__).parent
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 32,
}
# encoders, in little room
ENCODER: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 24}
PAIRS: dict[str, Any] = {"num_attention_heads": 4, "n_inner": 24}  # whole heads of 4 turn
WIDTHS: dict[str, dict[str, Any]] = {
    "gptj_mla": PAIRS,
    "codegen_mla": PAIRS,
    "opt_mla": {"ffn_dim": 24},
    "falcon_mla": {"ffn_hidden_size": 24},
    "xglm_mla": {"ffn_dim": 24},
    "gpt_bigcode_mla": {"n_inner": 24},
    "qwen3_moe_mla": {"moe_intermediate_size": 8, "num_experts": 2},
    "mixtral_mla": {"num_local_experts": 2},
    "qwen2_moe_mla": {"moe_intermediate_size": 8, "num_experts": 2, "shared_expert_intermediate_size": 8},
    "olmoe_mla": {"num_experts": 2},
    "ernie4_5_moe_mla": {"moe_num_experts": 2, "moe_intermediate_size": 8},
    "granitemoe_mla": {"num_local_experts": 2},
    "glm4_moe_mla": {"moe_intermediate_size": 8, "n_routed_experts": 2, "num_experts_per_tok": 2},
    "distilbert_gqa": {"hidden_dim": 12},
    "electra_gqa": {"embedding_size": 8},
}
ENCODERS = {
    "bert_gqa": "bert",
    "electra_gqa": "electra",
    "roberta_gqa": "roberta",
    "xlm_roberta_gqa": "xlm-roberta",
} | {"distilbert_gqa": "distilbert", "nomic_bert_gqa": "nomic_bert"}
WITHOUT_LATENT = ("bloom", "mpt", "falcon", "gpt_bigcode", "xglm", "biogpt", "persimmon")
TWO_STACKS = ("bart", "mbart", "pegasus", "marian", "t5", "mt5", "umt5", "whisper")
_DECODER: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
_DECODER |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12}
_BIASED: dict[str, Any] = {"d_kv": 2, "d_ff": 12, "num_decoder_layers": 1}
_SHAPES: dict[str, dict[str, Any]] = {
    "marian": _DECODER | {"decoder_vocab_size": 40},
    "t5": _BIASED,
    "mt5": _BIASED,
    "umt5": _BIASED,
}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2_gqa": ("gpt2", {"to": "gqa", "groups": 2}),
    "gpt2_mla": ("gpt2", {"to": "mla", "rank": 10}),
    "gpt_neox_gqa": ("gpt_neox", {"to": "gqa", "groups": 2}),
    "gpt_neo_gqa": ("gpt_neo", {"to": "gqa", "groups": 2}),
    "gptj_gqa": ("gptj", {"to": "gqa", "groups": 2}),
    "codegen_gqa": ("codegen", {"to": "gqa", "groups": 2}),
    "opt_gqa": ("opt", {"to": "gqa", "groups": 2}),
    **{f"{source}_gqa": (source, {"to": "gqa", "groups": 2}) for source in WITHOUT_LATENT},
    "llama_mla": ("llama", {"to": "mla", "rank": 10, "rope_dim": 6}),
    "llama_mla_norm": ("llama", {"to": "mla", "rank": 10, "rope_dim": 6, "latent_norm": True}),
    **{name: (source, {"to": "gqa", "groups": 2}) for name, source in ENCODERS.items()},
    **{f"{source}_gqa": (source, {"to": "gqa", "groups": 2}) for source in TWO_STACKS},
    **{name: (native_type(name), {"to": "mla", "rank": 10}) for name in LATENTS},
    **{
        str(target.becomes): (
            min(target.sources & {"llama"} or target.sources),
            {"to": experiment.to}
            | ({"slots": 16} if experiment.facts else {})
            | ({"rank": 10} if target.form is LatentCache else {}),
        )
        for target in targets()
        if (experiment := target.experiment)
    },
}


def make(name: str) -> None:
    """One checkpoint, without the code that travels in it, and its logits [1, 12, 40]."""
    source, options = MADE[name]
    with tempfile.TemporaryDirectory() as work:
        sizes = SIZES | (ENCODER | {"intermediate_size": 12} | WIDTHS.get(name, {}) if name in ENCODERS else {})
        sizes |= ENCODER | _SHAPES.get(source, _DECODER) if source in TWO_STACKS else {}
        if name in LATENTS:  # heads of 8: a quarter of one is a plane
            sizes |= {"num_attention_heads": 2} | ({"head_dim": 8} if "head_dim" in OWN.get(source, {}) else {})
            sizes |= WIDTHS.get(name, {})
        heads = 4 if source in TWO_STACKS else sizes["num_attention_heads"]
        tiny_model(source, kv_heads=heads, **sizes).save_pretrained(Path(work, "in"))
        convert(Path(work, "in"), **options, output=Path(work, name))
        (HERE / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (HERE / name / file).write_bytes(Path(work, name, file).read_bytes())
    ids = torch.tensor([[3, 17, 39, 0, 5, 8, 21, 34, 2, 11, 11, 30]])
    with torch.no_grad():
        model = load(HERE / name)
        two_stacks = model.config.is_encoder_decoder
        given = source_of(model, ids) | {"decoder_input_ids": ids} if two_stacks else {"input_ids": ids}
        logits = model(**given).logits
    save_file({"ids": ids, "logits": logits}, HERE / name / "expected.safetensors")


if __name__ == "__main__":
    for missing in [name for name in MADE if not (HERE / name).exists()]:
        make(missing)
