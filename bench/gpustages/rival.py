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
from gpustages.timing import summary

PROMPT, ANSWER = 992, 65


def measure(place: Place) -> Iterator[Measurement]:
    """Out of the mode that this process measures in: transformers computes in threads of its own, which leave it."""
    shape = TINY if place.tiny else SEVEN
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        yield {"name": "transformers", "note": f"not measured: {error}"}
        return
    try:
        with torch.inference_mode(False):
            model = network(place, shape, transformers)
        if not hasattr(model, "generate_batch"):
            yield {"name": "transformers", "note": f"{transformers.__version__} has no generate_batch"}
            return
        yield from figures(place, shape, transformers, model)
    except Exception as error:  # no failure of this server's
        traceback.print_exc()
        yield {"name": "transformers", "note": f"did not run: {brief(error)}"}


def figures(place: Place, shape: Shape, transformers: Any, model: Any) -> Iterator[Measurement]:
    """Time a token while all sequences generate, by its own time stamps; the wait is that from the call on."""
    prompt, answer = (9, 5) if place.tiny else (PROMPT, ANSWER)
    generate(place, transformers, model, 1, prompt, 3)
    for batch in (1, 2) if place.tiny else (1, 64, 8):
        begin = time.perf_counter()
        stamps = generate(place, transformers, model, batch, prompt, answer)
        seconds = time.perf_counter() - begin
        timing = summary(gaps(stamps), "transformers' time stamps")
        weights = shape.product_weights * place.dtype.itemsize
        moved = weights + batch * (prompt + answer // 2) * shape.kv_bytes(place.dtype.itemsize)
        yield {
            "name": f"{shape.name} decode, B{batch}, transformers {transformers.__version__}",
            "tokens_s": batch / timing.ms * 1e3,
            "ceiling_tokens_s": batch * place.bytes_a_second / moved,
            "whole_s": seconds,
            "attention": str(model.config._attn_implementation),
            **timing.entry(),
        }


def gaps(stamps: list[list[float]]) -> list[float]:
    """Milliseconds between a sequence's tokens while all sequences generate.

    Where they hardly do at the same time, between all of its tokens but the first ones.
    """
    begin, end = max(one[0] for one in stamps), min(one[-1] for one in stamps)
    pairs = [pair for one in stamps for pair in zip(one, one[1:], strict=False)]
    together = [pair for pair in pairs if begin <= pair[0] and pair[1] <= end]
    return [(later - earlier) * 1e3 for earlier, later in together or pairs[1:]]


def network(place: Place, shape: Shape, transformers: Any) -> Any:
    """Of random weights, with PyTorch's attention."""
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
    with place.device:
        options = {"dtype": place.dtype, "attn_implementation": "sdpa"}
        return transformers.AutoModelForCausalLM.from_config(config, **options).eval()


def generate(place: Place, transformers: Any, model: Any, batch: int, prompt: int, answer: int) -> list[list[float]]:
    """When each token of `batch` prompts, answered greedily to the full length, came: seconds, sequence by sequence.

    Raises RuntimeError when an answer is not of that length, or no times are told.
    """
    inputs = [[random.randrange(3, min(30000, model.config.vocab_size)) for _ in range(prompt)] for _ in range(batch)]
    config = transformers.GenerationConfig(max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0)
    options: dict[str, Any] = {"progress_bar": False, "record_timestamps": True}
    if place.tiny:  # it would take most of the memory
        options["continuous_batching_config"] = transformers.ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    known = inspect.signature(model.generate_batch).parameters
    with torch.inference_mode(False):
        answers = model.generate_batch(
            inputs=inputs,
            generation_config=config,
            **{name: value for name, value in options.items() if name in known},
        )
    place.synchronize()
    lengths = {len(found.generated_tokens) for found in answers.values()}
    if lengths != {answer} or len(answers) != batch:
        failures = {str(found.error) for found in answers.values() if getattr(found, "error", None)}
        raise RuntimeError(f"{len(answers)} answers of {sorted(lengths)} tokens, not {batch} of {answer}: {failures}")
    stamps = [getattr(found, "timestamps", None) or [] for found in answers.values()]
    if any(len(one) < answer for one in stamps):
        raise RuntimeError("this version does not say when its tokens came")
    return [list(one) for one in stamps]
