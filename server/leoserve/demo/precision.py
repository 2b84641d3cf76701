"""Measures what a key/value cache of 8 bits costs: perplexity and logits against a cache of the model's own dtype.

    python -m leoserve.demo.precision [--model DIR] [--dtype bfloat16|float32] [--sample N] [--json FILE]

The right answers to held-out questions are put through the network token by token, as if it had given them; every key
and value is read back from the cache.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from leokernels import AttentionMetadata
from leoserve.demo import model_path
from leoserve.demo.chat import Message, render_chat
from leoserve.demo.corpus import Corpus
from leoserve.demo.evaluate import HELD_OUT_SEED
from leoserve.demo.tokenizer import BOS_ID
from leoserve.model.config import ModelConfig
from leoserve.model.llama import Llama
from leoserve.model.weights import load_weights

KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
BLOCK_SIZE = 64
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Sample:
    """A chat with its right answer."""

    tokens: list[int]
    answer: int  # where the answer begins among the tokens


@dataclass(frozen=True, slots=True)
class Loss:
    """A cache's figures over all tokens of the answers. Errors are those of logits, against the plain cache's."""

    cache: str
    perplexity: float
    relative_error: float  # root mean square, as a share of the logits' own
    largest_error: float
    divergence: float  # Kullback-Leibler, nats a token
    same_best: float  # share of tokens with the same likeliest one


def samples(folder: Path, count: int) -> list[Sample]:
    """Held-out questions with their answers, a seeded choice."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    items = random.Random(HELD_OUT_SEED).sample(Corpus().held_out(HELD_OUT_SEED), count)
    found = []
    for item in items:
        question = tokenizer.encode(render_chat(list(item.messages), open_answer=True), add_special_tokens=False).ids
        chat = render_chat([*item.messages, Message("assistant", item.answer)])
        whole = tokenizer.encode(chat.removesuffix("\n"), add_special_tokens=False).ids
        if whole[: len(question)] == question:  # else a token spans both
            found.append(Sample([BOS_ID, *whole], 1 + len(question)))
    return found


def load(folder: Path, dtype: torch.dtype, kv_dtype: torch.dtype | None) -> Llama:
    config = ModelConfig.from_folder(folder)
    model = Llama(config, dtype=dtype, device=CPU, attention="reference", kv_dtype=kv_dtype)
    load_weights(model, folder, config, progress=None)
    model.prepare()
    return model


@torch.inference_mode()
def answer_logits(model: Llama, chats: list[Sample]) -> Iterator[Tensor]:
    """Of each chat, the logits [tokens of the answer, vocab_size] that were to give its answer."""
    for chat in chats:
        count = len(chat.tokens)
        blocks = -(-count // BLOCK_SIZE)
        metadata = AttentionMetadata(
            num_decode=0,
            query_start=torch.tensor([0, count], dtype=torch.int32),
            context_len=torch.tensor([count], dtype=torch.int32),
            block_table=torch.arange(blocks, dtype=torch.int32)[None],
            slot_mapping=torch.arange(count),
            query_lens=[count],
            context_lens=[count],
            max_query=count,
            max_context=count,
        )
        cache = model.new_cache(blocks, BLOCK_SIZE)
        hidden = model.forward(torch.tensor(chat.tokens), torch.arange(count), cache, metadata)
        yield model.logits(hidden[chat.answer - 1 : -1])


def compare(name: str, plain: list[Tensor], found: list[Tensor], chats: list[Sample]) -> Loss:
    """The figures of a cache whose logits were `found`, where a plain one's were `plain`."""
    truth, other = torch.cat(plain), torch.cat(found)
    targets = torch.tensor([token for chat in chats for token in chat.tokens[chat.answer :]])
    expected, log_shares = truth.log_softmax(-1), other.log_softmax(-1)
    error = other - truth
    return Loss(
        cache=name,
        perplexity=math.exp(-float(log_shares[torch.arange(len(targets)), targets].mean())),
        relative_error=float(error.norm() / truth.norm()),
        largest_error=float(error.abs().max()),
        divergence=float((expected.exp() * (expected - log_shares)).sum(-1).mean()),
        same_best=float((truth.argmax(-1) == other.argmax(-1)).float().mean()),
    )


def measure(folder: Path, dtype: torch.dtype, count: int) -> list[Loss]:
    """A plain cache's figures, then those of every cache of 8 bits."""
    chats = samples(folder, count)
    plain = list(answer_logits(load(folder, dtype, None), chats))
    losses = [compare(str(dtype).removeprefix("torch."), plain, plain, chats)]
    for name, kv_dtype in KV_DTYPES.items():
        losses.append(compare(name, plain, list(answer_logits(load(folder, dtype, kv_dtype), chats)), chats))
    return losses


def table(losses: list[Loss]) -> str:
    """The figures as a small Markdown table."""
    lines = [
        "| cache | perplexity | logit error (RMS) | largest | divergence, nats | same best token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {loss.cache} | {loss.perplexity:.5f} | {loss.relative_error:.3%} | {loss.largest_error:.3f} "
        f"| {loss.divergence:.2e} | {loss.same_best:.2%} |"
        for loss in losses
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m leoserve.demo.precision", description="Measure what a key/value cache of 8 bits costs."
    )
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--sample", type=int, default=500, help="how many questions (default: 500)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    losses = measure(arguments.model, getattr(torch, arguments.dtype), arguments.sample)
    print(table(losses))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(loss) for loss in losses], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
