"""Which text a conversion is fitted on, of what was asked for and what there is."""

from __future__ import annotations

from convert_attn.convert.checkpoint.source import Source
from convert_attn.convert.errors import UsageError
from convert_attn.convert.methods.base import Method
from convert_attn.convert.planning.model_types import architecture
from convert_attn.convert.planning.request import Request
from convert_attn.convert.text.sounds import EXPECTED
from convert_attn.convert.text.windows import AUTO, NONE, SAMPLE, SELF, TOKEN_FILE, check_calibration

_FROM_WEIGHTS = (
    "no text (--calibration none): errors are weighed by a guess from the norms alone, which does for small models and "
    "ruins real ones; give --calibration auto or a text like that which the model will see"
)


def calibration_text(request: Request, method: Method, source: Source) -> tuple[str | None, tuple[str, ...]]:
    """Give the text that layers are fitted on, None for none, and sentences on why there is none.

    Raises:
        UsageError: text that is not there or that nothing reads, or options for it that make sense without.
    """
    asked = NONE if request.calibration is None else request.calibration
    arch = architecture(source.config["model_type"])
    if arch.cross is not None and (without := _without_pairs(request, asked, arch.cross.reads, source)):
        return None, (without,)
    if asked == SELF and not arch.causal:
        raise UsageError("--calibration self: an encoder writes no text; give --calibration auto or FILE")
    if asked == NONE:
        if request.calibration_tokens is not None or request.refit:
            option = "--refit" if request.refit else "--calibration-tokens"
            raise UsageError(f"{option} needs text: give --calibration auto, FILE, sample or self")
        if method.calibration == "needed":
            raise UsageError(f"method '{method.name}' needs text: give --calibration auto, FILE, sample or self")
        return None, (_FROM_WEIGHTS,) if method.refit else ()
    reads = method.calibration != "none" or bool(request.refit) or request.slots is not None
    if not reads and asked != AUTO:
        raise UsageError(
            f"method '{method.name}' reads no text: drop --calibration, or add --refit to solve its output "
            "projections on the text"
        )
    if request.calibration_tokens is not None and request.calibration_tokens < 2:
        raise UsageError(
            f"--calibration-tokens is {request.calibration_tokens}, expected at least 2: one token alone has "
            "nothing to attend to"
        )
    if asked != AUTO:
        check_calibration(asked)
        return asked, ()
    if not reads:
        return None, ()
    if source.has_tokenizer:
        return (SAMPLE if source.origin.name.startswith("sample:") else AUTO), ()
    if method.calibration == "needed":
        raise UsageError(f"method '{method.name}' needs text, and '{source.origin.name}' has no tokenizer for it")
    return None, (no_text(f"'{source.origin.name}' has no tokenizer"),)


def _without_pairs(request: Request, asked: str, reads: str, source: Source) -> str:
    """Give a sentence on why an encoder-decoder is fitted from its weights where text was asked for; "" where not.

    Raises:
        UsageError: no source and target can be made of the text.
    """
    model_type = source.config["model_type"]
    if asked == SELF or asked.endswith(TOKEN_FILE):
        raise UsageError(
            f"--calibration {asked}: {model_type} is an encoder-decoder, whose source and target are made of text; "
            "give --calibration auto or FILE"
        )
    if reads == "text" or asked not in (AUTO, SAMPLE):
        return ""
    if asked != AUTO or request.refit:
        raise UsageError(
            f"{model_type} reads {reads}, of which the package has none: give --calibration {EXPECTED}; or "
            "--calibration none, and no --refit"
        )
    return no_text(f"'{source.origin.name}' reads {reads} and --calibration names none", f"give {EXPECTED}")


def no_text(reason: str, remedy: str = "see the measurement") -> str:
    """Tell what is to be known where text was wanted and cannot be had."""
    return f"{reason}, so that layers were fitted from the weights alone, which ruins real models: {remedy}"
