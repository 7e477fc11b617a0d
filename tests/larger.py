"""Tiny random models that see or hear too, around the language models of tiny.py, and inputs with an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from tiny import HEADS, OWN, SIZES
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig

from convert_attn.convert.archs import architectures
from convert_attn.convert.classes.auto_classes import auto_class_of

IMAGE = 90  # the token that stands for a part of an image
_TEXT = SIZES | {"pad_token_id": 0, "eos_token_id": 1}
_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 32,
}
_ROPE3 = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_QWEN = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "depth": 2, "num_heads": 4}


def _pixels(parts: int, *shape: int) -> Callable[[], dict[str, Tensor]]:
    def inputs() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(2, IMAGE, (1, 6 + parts), generator=generator)
        ids[0, 2 : 2 + parts] = IMAGE
        return {"input_ids": ids, "pixel_values": torch.randn(1, *shape, generator=generator)}

    return inputs


def _with(inputs: Callable[[], dict[str, Tensor]], **more: Any) -> Callable[[], dict[str, Tensor]]:
    return lambda: inputs() | {name: torch.tensor(value) for name, value in more.items()}


def _grid(channels: int) -> Callable[[], dict[str, Tensor]]:
    """A Qwen image of 4 x 4 patches, which become 4 tokens."""

    def inputs() -> dict[str, Tensor]:
        found = _pixels(4, 1)()
        patches = torch.randn(16, channels, generator=torch.Generator().manual_seed(4))
        kinds = (found["input_ids"] == IMAGE).int()
        return found | {
            "pixel_values": patches,
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": kinds,
        }

    return inputs


def _kinds(inputs: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """With the marks of tokens that are of an image."""

    def marked() -> dict[str, Tensor]:
        found = inputs()
        return found | {"token_type_ids": (found["input_ids"] == IMAGE).int()}

    return marked


def _tiles() -> dict[str, Tensor]:
    """An image of two tiles, of which the first token of the text sees none."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, IMAGE, (1, 8), generator=generator)
    seen = torch.ones(1, 8, 1, 2)
    seen[:, 0] = 0
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 1, 2, 3, 16, 16, generator=generator),
        "aspect_ratio_ids": torch.tensor([[2]]),
        "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.int64),
        "cross_attention_mask": seen,
    }


@dataclass(frozen=True, kw_only=True)
class Larger:
    """A larger model's tiny config, and what it reads with an image.

    Attributes:
        text: model type of the language model inside.
        vision: of its config.
        own: keys of the larger model's own.
        inputs: token ids with an image.
    """

    text: str
    vision: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    own: dict[str, Any] = field(default_factory=dict)
    text_own: dict[str, Any] = field(default_factory=dict)
    vision_type: str | None = "clip_vision_model"


SETTINGS: dict[str, Larger] = {
    "llava": Larger(text="llama", vision=_CLIP, inputs=_pixels(4, 3, 16, 16), own={"image_token_index": IMAGE}),
    "llava_next": Larger(
        text="mistral",
        vision=_CLIP,
        inputs=_with(_pixels(10, 2, 3, 16, 16), image_sizes=[[16, 16]]),
        own={"image_token_index": IMAGE, "image_grid_pinpoints": [[16, 16]]},
    ),
    "qwen2_vl": Larger(
        text="qwen2_vl_text",
        vision=_QWEN | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        inputs=_grid(3 * 2 * 4 * 4),
        own={"image_token_id": IMAGE},
        text_own=_ROPE3,
        vision_type=None,
    ),
    "qwen2_5_vl": Larger(
        text="qwen2_5_vl_text",
        vision=_QWEN
        | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "fullatt_block_indexes": [1]},
        inputs=_grid(3 * 2 * 4 * 4),
        own={"image_token_id": IMAGE},
        text_own=_ROPE3,
        vision_type=None,
    ),
    "gemma3": Larger(
        text="gemma3_text",
        vision=_CLIP,
        inputs=_kinds(_pixels(4, 3, 16, 16)),
        own={"image_token_index": IMAGE, "mm_tokens_per_image": 4},
        vision_type="siglip_vision_model",
    ),
    "mistral3": Larger(
        text="mistral",
        vision={key: value for key, value in _CLIP.items() if key != "projection_dim"} | {"image_size": 32},
        inputs=_with(_pixels(2, 3, 32, 16), image_sizes=[[32, 16]]),
        own={"image_token_index": IMAGE, "spatial_merge_size": 2},
        vision_type="pixtral",
    ),
    "idefics3": Larger(
        text="llama",
        vision=_CLIP,
        inputs=_pixels(1, 1, 3, 16, 16),
        own={"image_token_id": IMAGE, "scale_factor": 2},
        vision_type=None,
    ),
    "smolvlm": Larger(
        text="llama",
        vision=_CLIP,
        inputs=_pixels(1, 1, 3, 16, 16),
        own={"image_token_id": IMAGE, "scale_factor": 2},
        vision_type=None,
    ),
    "internvl": Larger(
        text="qwen2",
        vision=_CLIP | {"image_size": [16, 16], "patch_size": [8, 8]},
        inputs=_pixels(1, 3, 16, 16),
        own={"image_token_id": IMAGE},
        vision_type=None,
    ),
    "mllama": Larger(
        text="mllama_text_model",
        vision={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0, 2],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "vision_output_dim": 96,
        },
        inputs=_tiles,
        own={"image_token_index": IMAGE},
        text_own={"num_hidden_layers": 3, "cross_attention_layers": [1]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        vision_type=None,
    ),
}
# its tokens see those behind them, so that what was decoded with a cache is not what one pass gives
PREFIX = Larger(
    text="gemma",
    vision=_CLIP | {"projection_dim": 64},
    inputs=_pixels(4, 3, 16, 16),
    own={"image_token_index": IMAGE, "projection_dim": 64},
    vision_type="siglip_vision_model",
)
LARGER = [name for name, larger in SETTINGS.items() if name in CONFIG_MAPPING and larger.text in architectures()]


def larger_config(name: str, **text: Any) -> Any:
    """The tiny config of a larger model."""
    larger = PREFIX if name == "paligemma" else SETTINGS[name]
    inner = _TEXT | {"num_key_value_heads": HEADS} | OWN.get(larger.text, {}) | larger.text_own | text
    inner |= {"model_type": larger.text}
    seen = larger.vision | ({"model_type": larger.vision_type} if larger.vision_type else {})
    return AutoConfig.for_model(name, text_config=inner, vision_config=seen, **larger.own)


def larger_model(name: str, seed: int = 0, **text: Any) -> Any:
    """A random model, fp32, with norms and biases away from one and zero."""
    config = larger_config(name, **text)
    auto = auto_class_of({"model_type": name})
    torch.manual_seed(seed)
    model = getattr(transformers, auto).from_config(config).eval()
    offset = architectures()[config.get_text_config().model_type].norm
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1 or "norm" in path:
                centre = 0.0 if path.endswith("bias") or (offset and offset.gain_offset) else 1.0
                parameter.normal_(centre, 0.2)
            else:
                parameter.normal_(0, 0.15)
    return model


@cache
def image_inputs(name: str) -> dict[str, Tensor]:
    """Token ids [1, T] with an image, and the image."""
    return SETTINGS[name].inputs()


@torch.no_grad()
def logits_with_image(model: Any, name: str) -> Tensor:
    """Logits [1, T, vocabulary] of a text with an image."""
    return model(**image_inputs(name)).logits
