"""Blocks compiled by torch.compile, each by itself: blocks of one shape share what was compiled for the first."""

from __future__ import annotations

from typing import Any

from torch import nn

_SHAPES = 256  # of blocks: MLA may have a rank for each layer, and torch gives up after 8 by default


def compile_blocks(*models: Any) -> None:
    """Compile the blocks of causal language models where they stand; names of parameters stay as they are.

    See "regional compilation" in PyTorch's recipes. Nothing is compiled before a block is first called.
    """
    from torch._dynamo import config

    config.cache_size_limit = max(config.cache_size_limit, _SHAPES)
    config.accumulated_cache_size_limit = max(config.accumulated_cache_size_limit, 8 * _SHAPES)
    for model in models:
        two_stacks = getattr(model.config, "is_encoder_decoder", False)
        for stack in (model.get_encoder(), model.get_decoder()) if two_stacks else (model.base_model,):
            for module in stack.modules():
                if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1:
                    for block in module:
                        block.compile()
                    break  # the outermost list: what a block has inside is compiled with it
