"""Retrains the demo model from nothing: corpus, tokenizer, network.

    python -m leoserve.demo.train --out DIR

The recipe is the defaults below. Everything is seeded; with the same seed, thread count and libraries a run
gives the same model. A run that was cut short goes on from its checkpoint with `--resume`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from leoserve.demo import model_path
from leoserve.demo.chat import render_chat
from leoserve.demo.corpus import LESSONS, Corpus, Dialogue
from leoserve.demo.tokenizer import BOS_ID, EOS_ID, train_tokenizer, write_json, write_tokenizer

CONTEXT = 2048
TOKENIZER_ENTRIES = 2500
TOKENIZER_DIALOGUES = 30_000
BUCKET = 2048  # dialogues that are sorted by length together, to waste little on padding
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. Tokens are what the network reads, without padding; `rates` are the corners of the
    learning rate's course, as (tokens, share of the full rate)."""

    tokens: int = 15_500_000
    lesson_tokens: tuple[int, ...] = (6_000_000, 11_000_000, 12_800_000, 15_500_000)  # where each lesson ends
    batch_tokens: int = 4_096
    seed: int = 20
    hidden: int = 256
    intermediate: int = 512
    layers: int = 4
    matrix_rate: float = 5e-3
    vector_rate: float = 4e-3
    rates: tuple[tuple[int, float], ...] = (
        (0, 0.0),
        (250_000, 1.0),
        (4_000_000, 1.0),
        (6_000_000, 0.457),
        (11_000_000, 0.034),
        (11_080_000, 0.3),
        (12_800_000, 0.0),
        (12_880_000, 0.35),
        (15_500_000, 0.0),
    )
    threads: int = 2


def text_of(dialogue: Dialogue) -> str:
    """Return a dialogue as the network reads it, without `<s>`."""
    if dialogue.messages:
        return render_chat(list(dialogue.messages), dialogue.card_newline)
    return dialogue.text


def learn_tokenizer(corpus: Corpus, seed: int) -> dict[str, Any]:
    """Train the tokenizer on the text between the chat tokens, and return `tokenizer.json`."""
    sample = itertools.islice(corpus.training(seed), TOKENIZER_DIALOGUES)
    texts = (part for d in sample for part in re.split(r"<\|im_(?:start|end)\|>", text_of(d)) if part)
    return train_tokenizer(texts, TOKENIZER_ENTRIES)


class Batches:
    """Turns dialogues into (input ids, labels) batches of similar length; the loss is on the answers alone."""

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus, recipe: Recipe) -> None:
        self.tokenizer, self.corpus, self.recipe = tokenizer, corpus, recipe
        vocabulary = tokenizer.get_vocab()
        self.im_start, self.im_end = vocabulary["<|im_start|>"], vocabulary["<|im_end|>"]
        self.assistant = vocabulary["▁assistant"]

    def lesson(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one lesson without end: two int64 tensors [rows, length], padded with 0 and
        `IGNORED`."""
        seed = self.recipe.seed + number
        rng = random.Random(seed)
        dialogues = self.corpus.training(seed, LESSONS[number])
        while True:
            bucket = list(itertools.islice(dialogues, BUCKET))
            encoded = self.tokenizer.encode_batch([text_of(d) for d in bucket], add_special_tokens=False)
            rows = [self.labelled(e.ids, bool(d.messages)) for e, d in zip(encoded, bucket, strict=True)]
            rows.sort(key=lambda row: len(row[0]))
            batches = list(self.cut(rows))
            rng.shuffle(batches)
            yield from batches

    def labelled(self, ids: list[int], chat: bool) -> tuple[list[int], list[int]]:
        """Put `<s>` in front and mark what is learnt: answers with their `<|im_end|>`, or all of a plain text."""
        if not chat:
            ids = [BOS_ID, *ids, EOS_ID]
            return ids, [IGNORED, *ids[1:]]
        ids = [BOS_ID, *ids]
        labels = [IGNORED] * len(ids)
        for i, token in enumerate(ids):
            if token == self.im_start and ids[i + 1] == self.assistant:
                end = ids.index(self.im_end, i)
                labels[i + 3 : end + 1] = ids[i + 3 : end + 1]  # after "<|im_start|> assistant \n"
        return ids, labels

    def cut(self, rows: list[tuple[list[int], list[int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut rows, sorted by length, into batches of about `batch_tokens` padded tokens."""
        while rows:
            length = len(rows[-1][0])
            count = max(1, self.recipe.batch_tokens // length)
            batch, rows = rows[-count:], rows[:-count]
            ids = torch.zeros(len(batch), length, dtype=torch.int64)
            labels = torch.full((len(batch), length), IGNORED, dtype=torch.int64)
            for i, (row_ids, row_labels) in enumerate(batch):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                labels[i, : len(row_labels)] = torch.tensor(row_labels)
            yield ids, labels


def build_network(rows: int, recipe: Recipe) -> LlamaForCausalLM:
    """Return an untrained float32 network with `rows` vocabulary rows and positions scaled by 2."""
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 64,
        num_key_value_heads=recipe.hidden // 64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    )
    # On texts this short plain attention is a fifth faster than the fused kernel.
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def build_optimizers(network: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings, head and norms."""
    matrices, others = list[torch.nn.Parameter](), list[torch.nn.Parameter]()
    for name, parameter in network.named_parameters():
        (matrices if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(tokens: int, recipe: Recipe) -> float:
    """Return the share of the full learning rate after `tokens`: the straight lines between `recipe.rates`."""
    for (start, low), (end, high) in itertools.pairwise(recipe.rates):
        if tokens < end:
            return low + (high - low) * (tokens - start + 1) / (end - start)
    return 0.0


def answer_loss(network: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the labelled tokens; the head runs on these alone."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = network.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        learnt = targets != IGNORED
        logits = network.lm_head(states[learnt])
    return torch.nn.functional.cross_entropy(logits.float(), targets[learnt])


class Run:
    """A training run: the network, its optimizers and how far it is."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self.recipe = out, recipe
        self.corpus = Corpus()
        self.tokenizer_json = learn_tokenizer(self.corpus, recipe.seed)
        self.tokenizer = Tokenizer.from_str(json.dumps(self.tokenizer_json))
        torch.manual_seed(recipe.seed)
        self.network = build_network(-(-self.tokenizer.get_vocab_size() // 64) * 64, recipe)
        self.optimizers = build_optimizers(self.network, recipe)
        self.steps = self.tokens = self.lesson = self.lesson_start = 0  # lesson_start: its first step
        self.kept: dict[str, Tensor] = {}  # the weights with which the last lesson began
        self.cpu_seconds = self.wall_seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        """Where the run can be continued from."""
        return self.out / "checkpoint.pt"

    def save_checkpoint(self) -> None:
        """Write everything a later call needs to go on; the data is found again by counting the steps."""
        state = {
            "network": self.network.state_dict(),
            "kept": self.kept,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.steps, self.tokens, self.lesson, self.lesson_start, self.cpu_seconds, self.wall_seconds),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def load_checkpoint(self) -> None:
        """Go back to the last checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.kept = state["kept"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        (self.steps, self.tokens, self.lesson, self.lesson_start, self.cpu_seconds, self.wall_seconds) = state[
            "progress"
        ]

    def step(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Learn from one batch and return its loss."""
        share = rate(self.tokens, self.recipe)
        for optimizer, full in zip(self.optimizers, (self.recipe.matrix_rate, self.recipe.vector_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = full * share
        loss = answer_loss(self.network, ids, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        self.tokens += int((ids != 0).sum())
        if self.tokens >= self.recipe.lesson_tokens[self.lesson] and self.lesson + 1 < len(LESSONS):
            self.lesson, self.lesson_start = self.lesson + 1, self.steps
            if self.lesson + 1 == len(LESSONS):
                self.kept = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return loss.detach()

    def average(self) -> None:
        """Take the mean of the weights before and after the last lesson: what the lesson taught stays, and so does
        what it had begun to push aside (Izmailov et al., 2018, arXiv:1803.05407)."""
        weights = self.network.state_dict()
        self.network.load_state_dict({name: (weights[name] + kept) / 2 for name, kept in self.kept.items()})

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches that are still to come: the rest of this lesson, then the next ones."""
        batches = Batches(self.tokenizer, self.corpus, self.recipe)
        while True:
            lesson, seen = self.lesson, self.steps - self.lesson_start
            for batch in itertools.islice(batches.lesson(lesson), seen, None):
                yield batch
                if self.lesson != lesson:
                    break

    def train(self, save_every: int = 100, report_every: int = 20) -> None:
        """Learn until the token budget is used up, reporting and saving on the way."""
        wall, cpu, seen, losses = time.time(), time.process_time(), self.tokens, list[Tensor]()
        for ids, labels in self.batches():
            losses.append(self.step(ids, labels))
            finished = self.tokens >= self.recipe.tokens
            if self.steps % report_every == 0 or finished:
                spent, spent_cpu = time.time() - wall, time.process_time() - cpu
                speed = (self.tokens - seen) / spent
                self.wall_seconds, self.cpu_seconds = self.wall_seconds + spent, self.cpu_seconds + spent_cpu
                left = max(0, self.recipe.tokens - self.tokens) / speed / 60
                print(
                    f"step {self.steps}  {self.tokens / 1e6:.2f} M tokens  {speed:.0f} tokens/s  "
                    f"loss {torch.stack(losses).mean():.4f}  {left:.0f} min left",
                    flush=True,
                )
                wall, cpu, seen, losses = time.time(), time.process_time(), self.tokens, []
            if self.steps % save_every == 0 or finished:
                self.save_checkpoint()
            if finished:
                return

    def write_model(self) -> None:
        """Write the finished model in the layout of a LeoLM repository."""
        write_model(self.out, self.network, self.tokenizer_json)
        minutes = self.wall_seconds / 60, self.cpu_seconds / 60
        count = sum(p.numel() for p in self.network.parameters())
        print(
            f"{count} parameters, {self.steps} steps, {self.tokens} tokens, "
            f"{minutes[0]:.0f} minutes ({minutes[1]:.0f} CPU minutes)"
        )


def write_model(out: Path, network: LlamaForCausalLM, tokenizer_json: dict[str, Any]) -> None:
    """Write weights (bf16), configuration in LeoLM's own spelling, and tokenizer into `out`."""
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # as readable as the other files
    config = network.config
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "hidden_act": "silu",
            "hidden_size": config.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": config.intermediate_size,
            "max_position_embeddings": CONTEXT,
            "model_type": "llama",
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "num_key_value_heads": config.num_key_value_heads,
            "pad_token_id": 0,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": config.vocab_size,
        },
    )
    write_json(
        out / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": 0},
    )
    write_tokenizer(out, tokenizer_json, CONTEXT)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m leoserve.demo.train", description="Retrain the demo model.")
    parser.add_argument("--out", type=Path, default=model_path(), help="folder to write (default: the bundled model)")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="stop after so many, for a try")
    parser.add_argument("--threads", type=int, default=Recipe.threads)
    parser.add_argument("--resume", action="store_true", help="go on from DIR/checkpoint.pt")
    arguments = parser.parse_args()
    recipe = Recipe(tokens=arguments.tokens, seed=arguments.seed, threads=arguments.threads)
    torch.set_num_threads(recipe.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.out, recipe)
    if arguments.resume:
        run.load_checkpoint()
    run.train()
    if run.kept:  # a run that was cut short may not have come so far
        run.average()
    run.write_model()
    run.checkpoint.unlink()


if __name__ == "__main__":
    main()
