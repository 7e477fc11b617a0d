"""Stock models of transformers in which some parts are others: built as they are, and the parts put in place."""

from typing import Any

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter


class ReplacedParts:
    """What a family's models have in front of the stock class that each of them is.

    Attributes:
        stands_for: stock class -> the family's own: modules of a layer, made from (config, number of the layer), and
            the base model, made from (config).
    """

    stands_for: dict[type, Any]
    config_class: Any
    _can_record_outputs: Any
    # transformers' patterns are for buffers in checkpoints of the stock class, and vLLM drops what they are found in
    _keys_to_ignore_on_load_unexpected: Any = None

    def post_init(self) -> None:
        """Put the family's own parts in place, then go on as transformers does."""
        self._replace(self)
        super().post_init()  # type: ignore[misc]  # of the stock class

    def _replace(self, parent: Any) -> None:
        """Put parts in place below a module."""
        for name, child in list(parent.named_children()):
            own = self.stands_for.get(type(child))
            if own is None:
                self._replace(child)
            elif hasattr(child, "layer_idx"):
                setattr(parent, name, own(child.config, child.layer_idx))
            else:
                setattr(parent, name, own(child.config))


def keep_stored_names(own: str, stock: str, *, joined: bool = True) -> None:
    """Let a class of ours read and write tensors under the names that checkpoints of the stock one have.

    own, stock: names of classes, or model types; what transformers has no renaming for is left as it is.
    joined: also what is one tensor in a checkpoint and several in the class, or the other way round.
    """
    mapping = get_checkpoint_conversion_mapping(stock)
    if mapping is not None:
        mapping = [rule for rule in mapping if joined or not isinstance(rule, WeightConverter)]
        register_checkpoint_conversion_mapping(own, mapping, overwrite=True)


__all__ = ["ReplacedParts", "keep_stored_names"]
