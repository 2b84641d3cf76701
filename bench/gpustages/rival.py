"""Stage 5: the same work by transformers' continuous batching, as it comes out of the box."""

from __future__ import annotations

import importlib
import inspect
import random
import time
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from gpustages.place import Place
from gpustages.shapes import SEVEN, TINY, Shape
from gpustages.stages import Measurement, brief

PROMPT, ANSWER = 992, 65


def measure(place: Place) -> Iterator[Measurement]:
    """Time a token from two runs of different length: what is the same in both, prompts among it, cancels out."""
    shape = TINY if place.tiny else SEVEN
    try:
        import transformers
    except ImportError as error:
        yield {"name": "transformers", "note": f"not measured: {error}"}
        return
    if not hasattr(transformers.PreTrainedModel, "generate_batch"):
        yield {"name": "transformers", "note": f"{transformers.__version__} has no generate_batch"}
        return
    if place.device.type != "cuda":
        yield {"name": "transformers", "note": "its continuous batching wants a GPU"}
        return
    try:
        yield from figures(place, shape, transformers.__version__)
    except Exception as error:  # no failure of this server's
        traceback.print_exc()
        yield {"name": "transformers", "note": f"did not run: {brief(error)}"}


def figures(place: Place, shape: Shape, version: str) -> Iterator[Measurement]:
    model = network(place, shape)
    generate(model, 1, PROMPT, 3)
    for batch in (1, 8, 64):
        short, long = (generate(model, batch, PROMPT, answer) for answer in (ANSWER - 64, ANSWER))
        ms = (long - short) * 1e3 / 64
        weights = shape.product_weights * place.dtype.itemsize
        moved = weights + batch * (PROMPT + ANSWER // 2) * shape.kv_bytes(place.dtype.itemsize)
        yield {
            "name": f"{shape.name} decode, B{batch}, transformers {version}",
            "ms": ms,
            "tokens_s": batch / ms * 1e3,
            "ceiling_tokens_s": batch * place.bytes_a_second / moved,
            "whole_s": [short, long],
        }


def network(place: Place, shape: Shape) -> Any:
    """Of random weights, with PyTorch's attention."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
    )
    with torch.inference_mode(False), place.device:
        options = {"dtype": place.dtype, "attn_implementation": "sdpa"}
        return transformers.AutoModelForCausalLM.from_config(config, **options).eval()


def generate(model: Any, batch: int, prompt: int, answer: int) -> float:
    """Seconds for `batch` prompts answered greedily to the full length."""
    inputs = [[random.randrange(3, 30000) for _ in range(prompt)] for _ in range(batch)]
    transformers: Any = importlib.import_module("transformers")
    config = transformers.GenerationConfig(max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0)
    known = inspect.signature(model.generate_batch).parameters
    options = {"progress_bar": False} if "progress_bar" in known else {}
    torch.cuda.synchronize()
    begin = time.perf_counter()
    answers = model.generate_batch(inputs=inputs, generation_config=config, **options)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    lengths = {len(found.generated_tokens) for found in answers.values()}
    if lengths != {answer}:
        raise RuntimeError(f"answers of {sorted(lengths)} tokens instead of {answer}")
    return seconds
