"""Trains the bundled sample checkpoints on the source of Python's own standard library.

Every Python carries that text, so the samples can be made again anywhere, offline:

    python -m convert_attn.convert.samples.making.train --output convert/samples --threads 1

Two small multi-head models come out, a GPT-2 and a Llama, with eight heads each: large enough to have learned something
that a conversion can spoil, small enough to be part of the package. What is measured here is measured on modules that
neither the models nor the tokenizer saw.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from convert_attn.convert.samples.making.cards import CardQuality, TrainingRecipe, card, training_record, write_texts
from convert_attn.convert.samples.making.corpus import (
    CONTEXT,
    VOCABULARY,
    Corpus,
    batches,
    encode,
    end_of_text,
    excerpt,
    read_corpus,
    token_stream,
    train_tokenizer,
    windows,
)

ROPE_THETA = 10000.0

# --- models -----------------------------------------------------------------------------------------------------------


def build_gpt2(end: int) -> PreTrainedModel:
    """GPT-2: learned positions, LayerNorm, GELU, biases, a fused Conv1D for q, k and v."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=4,
            n_head=8,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            summary_first_dropout=0.0,
            initializer_range=0.05,
            bos_token_id=end,
            eos_token_id=end,
            tie_word_embeddings=True,
        )
    )


def build_llama(end: int) -> PreTrainedModel:
    """Llama: rotary positions, RMSNorm, SwiGLU, no biases, as many key-value heads as heads."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            rms_norm_eps=1e-6,
            initializer_range=0.05,
            bos_token_id=end,
            eos_token_id=end,
            tie_word_embeddings=True,
        )
    )


# What transformers 5 no longer writes into config.json, and other readers look for.
OLDER_KEYS: dict[str, dict[str, Any]] = {"gpt2": {"n_ctx": CONTEXT}, "llama": {"rope_theta": ROPE_THETA}}

BUILDERS = {"gpt2": build_gpt2, "llama": build_llama}


def build(name: str, end: int) -> PreTrainedModel:
    """Give a model with fresh weights. Its configuration names no padding token: with one, Llama would not train it."""
    model = BUILDERS[name](end)
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    return model


# --- training and measuring -------------------------------------------------------------------------------------------


def optimizer_of(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: gains and biases have no scale to give up."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)


def rate_at(step: int, recipe: TrainingRecipe) -> float:
    """Give the factor on the learning rate: a linear warm-up, then half a cosine down to a hundredth."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done))


def token_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Cross-entropies in nats of all tokens but the first of each window: [batch * (CONTEXT - 1)]."""
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")


@torch.inference_mode()
def cross_entropy(model: PreTrainedModel, cut: Tensor, batch: int = 8) -> float:
    """Give mean cross-entropy in nats per token over windows [windows, CONTEXT]."""
    losses = [token_losses(model, part) for part in cut.split(batch)]
    return float(torch.cat(losses).double().mean())


def unigram_cross_entropy(stream: Tensor, cut: Tensor) -> float:
    """Give the same for a model that knows the tokens' frequencies in ``stream`` (plus one each), and nothing else."""
    counts = torch.bincount(stream, minlength=VOCABULARY).double() + 1.0
    log_probability = (counts / counts.sum()).log()
    return float(-log_probability[cut[:, 1:]].mean())


def train(model: PreTrainedModel, stream: Tensor, selection: Tensor, recipe: TrainingRecipe, report_every: int) -> None:
    """Trains ``model`` in place; ``selection`` windows are only looked at, every ``report_every`` steps."""
    optimizer = optimizer_of(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, recipe))
    feed = batches(stream, recipe.batch, torch.Generator().manual_seed(recipe.seed))
    began = time.perf_counter()
    recent = 0.0
    model.train()
    for step in range(1, recipe.steps + 1):
        loss = token_losses(model, next(feed)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += (float(loss.detach()) - recent) / min(step, 50)
        if step % report_every == 0 or step == recipe.steps:
            model.eval()
            seen = cross_entropy(model, selection)
            model.train()
            seconds = time.perf_counter() - began
            print(f"step {step:5d}  training {recent:.4f}  selection {seen:.4f}  {seconds:7.1f} s", flush=True)
    model.eval()


def measure(model: PreTrainedModel, stream: Tensor, cut: Tensor) -> CardQuality:
    """Held-out quality of the stored fp16 values, computed in fp32 so that only the storage counts."""
    ours = cross_entropy(model.float(), cut)
    unigram = unigram_cross_entropy(stream, cut)
    return CardQuality(
        tokens=cut[:, 1:].numel(),
        cross_entropy=ours,
        perplexity=math.exp(ours),
        unigram_cross_entropy=unigram,
        unigram_perplexity=math.exp(unigram),
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def edit_json(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(values)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the checkpoint, with the keys that readers older than transformers 5 look for."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    edit_json(folder / "config.json", **OLDER_KEYS[model.config.model_type])
    # transformers 5 writes the name of a class of its own, which 4 does not know; both load this one.
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


# --- the command ------------------------------------------------------------------------------------------------------


def make_sample(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    corpus: Corpus,
    recipe: TrainingRecipe,
    folder: Path,
    report_every: int,
) -> CardQuality:
    """Trains one model, measures it, and writes its folder."""
    stream = token_stream(tokenizer, corpus.training)
    selection = windows(token_stream(tokenizer, corpus.selection))
    heldout = windows(torch.tensor(encode(tokenizer, excerpt(corpus.heldout))))
    torch.manual_seed(recipe.seed)
    model = build(name, end_of_text(tokenizer))
    print(f"{name}: {model.num_parameters():,} parameters, {len(stream):,} tokens of text", flush=True)
    began = time.perf_counter()
    train(model, stream, selection, recipe, report_every)
    seconds = time.perf_counter() - began
    folder.mkdir(parents=True, exist_ok=True)
    save(model.half(), tokenizer, folder)
    quality = measure(model, stream, heldout)
    record = training_record(model, corpus, stream=stream, quality=quality, recipe=recipe, seconds=seconds)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(name, model, record), encoding="utf-8")
    return quality


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convert_attn.convert.samples.making.train",
        description="Train the sample checkpoints on the Python standard library's source.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("out/samples"), help="folder to write into")
    parser.add_argument("--only", choices=sorted(BUILDERS), help="train this model alone (default: both)")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=2, help=f"windows of {CONTEXT} tokens in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps up to the highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="AdamW's, on matrices only")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the windows' order")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; part of what fixes the result")
    parser.add_argument("--report-every", type=int, default=200, help="steps between two lines of progress")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    recipe = TrainingRecipe(
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        warmup=min(options.warmup, options.steps),
        weight_decay=options.weight_decay,
        seed=options.seed,
        threads=options.threads,
    )
    root = Path(sysconfig.get_paths()["stdlib"])
    corpus = read_corpus(root)
    options.output.mkdir(parents=True, exist_ok=True)
    command = f"python -m convert_attn.convert.samples.making.train --output convert/samples --threads {recipe.threads}"
    write_texts(corpus, root, options.output, command)
    tokenizer = train_tokenizer(corpus.training)
    for name in [options.only] if options.only else sorted(BUILDERS):
        quality = make_sample(
            name,
            tokenizer,
            corpus=corpus,
            recipe=recipe,
            folder=options.output / name,
            report_every=options.report_every,
        )
        print(
            f"{name}: held-out perplexity {quality.perplexity:.2f}, unigram {quality.unigram_perplexity:.1f}, "
            f"{quality.times_better:.1f} times better",
            flush=True,
        )


if __name__ == "__main__":
    main()
