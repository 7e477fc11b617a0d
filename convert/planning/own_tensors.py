"""The attention tensors of a checkpoint against those of its class, from headers."""

from __future__ import annotations

from convert_attn.convert.archs.base import Architecture
from convert_attn.convert.checkpoint.safetensors_format import FLOATS
from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.classes.class_facts import ClassFacts
from convert_attn.convert.errors import ConvertAttnError, UsageError


def check_attention(arch: Architecture, facts: ClassFacts, source: Source) -> None:
    """The attention tensors of the file are those of the class: all of them, of its shapes, and no others.

    Raises:
        ConvertAttnError: naming the first that is not.
    """
    names = source.names
    for layer in range(len(facts.modules)):
        for path, shape in facts.attention(layer).items():
            _check_tensor(source, names.base + path, shape)
        of_layer = arch.at(layer)
        if of_layer.norm is not None and of_layer.norm.weighted:
            norm = f"{arch.stem(layer)}{of_layer.norm.name}.weight"
            _check_tensor(source, names.base + norm, facts.parameters[norm])
    for name, of_class in names.unknown.items():
        path = of_class.removeprefix(names.base)
        inside = (*facts.modules, *filter(None, facts.apart))
        module = next((module for module in inside if path.startswith(f"{module}.")), None)
        if module is not None and path not in facts.buffers and not path.endswith(arch.buffers):
            raise ConvertAttnError(
                f"tensor '{name}' in shard '{source.weights.infos[name].file}' has no place in {facts.name} with this "
                "config: transformers would leave it out, so the model is not what its weights say; give a "
                "config.json that belongs to them, or remove the tensor"
            )


def _check_tensor(source: Source, parameter: str, shape: tuple[int, ...]) -> None:
    group = source.names.group(parameter)
    if group is None:
        name = source.names.place(parameter)
        raise ConvertAttnError(f"tensor '{name}' is missing from '{source.origin.name}'; download it again")
    infos = [source.weights.infos[name] for name in group.stored]
    found = group.shapes.get(parameter, infos[0].shape)
    if found != shape:
        raise ConvertAttnError(
            f"tensor '{infos[0].name}' in shard '{infos[0].file}' has shape {list(found)}, expected {list(shape)} "
            "from config.json; the two do not belong together"
        )
    for info in infos:
        if info.dtype not in FLOATS:
            raise UsageError(
                f"tensor '{info.name}' has dtype {info.dtype}: quantised weights cannot be converted; "
                "use the original in fp32, fp16 or bf16"
            )
