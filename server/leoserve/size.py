"""`leoserve size`: which GPU a model fits and how many chats run on it at once, before it is downloaded or rented.

The figures are those of `model/capacity.py`, for which a GPU's memory is all that has to be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leoserve.model import footprint, published
from leoserve.model.capacity import (
    BLOCK_SIZE,
    GIB,
    GPU_MEMORY,
    TOKENS_PER_STEP,
    Placement,
    TooLittleMemory,
    cache_blocks,
)
from leoserve.model.config import ModelConfig
from leoserve.settings import Settings, SettingsError

CONTEXTS = (8192, 4096, 1024)  # tokens of the chats that are counted
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
EIGHT_BITS = 1  # byte of a cached value with --kv-dtype int8 or fp8
NOTHING_FITS = 1


@dataclass(frozen=True, slots=True)
class Size:
    """A model on a GPU. Of the pairs, the first is the cache as --dtype has it, the second one of 8 bits."""

    model: str
    gpu: str
    weight_bytes: int
    cache_bytes: int
    tokens: tuple[int, int]
    at_once: dict[int, tuple[int, int]]  # chats, by their tokens


def run(settings: Settings, gpu: str | None) -> int:
    """Print the table; the exit code is 1 when nothing fits. Raises SettingsError and UnsupportedModel."""
    gpus = GPU_MEMORY if gpu is None else dict([named(gpu)])
    sizes, failures = measure(models(settings.model), gpus, settings)
    print("\n".join(lines(sizes, failures, settings)))
    return 0 if sizes else NOTHING_FITS


def models(name: str | None) -> dict[str, ModelConfig]:
    """The model by its repository or its folder; without a name, LeoLM's. Raises SettingsError, UnsupportedModel."""
    if name is None:
        return {short: published.NETWORKS[repository] for short, repository in published.SHORT.items()}
    found = published.network(name)
    if found is not None:
        return {name: found}
    if not Path(name).expanduser().is_dir():
        known = ", ".join(published.NETWORKS)
        raise SettingsError(f"MODEL {name}: give a folder with its config.json, or one of LeoLM's: {known}")
    return {Path(name).name: ModelConfig.from_folder(Path(name).expanduser())}


def named(gpu: str) -> tuple[str, int]:
    """A GPU's name and memory in bytes, by its name or its memory in GiB. Raises SettingsError."""
    if gpu.lower() in GPU_MEMORY:
        return gpu.lower(), GPU_MEMORY[gpu.lower()]
    try:
        memory = int(float(gpu) * GIB)
    except (ValueError, OverflowError):
        memory = 0
    if memory <= 0:
        raise SettingsError(f"--gpu {gpu}: give the GPU's memory in GiB, or one of {', '.join(GPU_MEMORY)}")
    return f"{float(gpu):g} GiB", memory


def measure(
    networks: Mapping[str, ModelConfig], gpus: Mapping[str, int], settings: Settings
) -> tuple[list[Size], list[str]]:
    """Every model on every GPU, and in a sentence for each model what it does not fit."""
    sizes, failures = [], []
    for model, config in networks.items():
        reasons: dict[str, TooLittleMemory] = {}
        for gpu, memory in gpus.items():
            try:
                sizes.append(size(model, config, gpu, memory, settings))
            except TooLittleMemory as error:
                reasons[gpu] = error
        if reasons:  # the largest of the GPUs comes last, and its reason says most
            failures.append(f"{model} does not fit {', '.join(reasons)}: {list(reasons.values())[-1]}.")
    return sizes, failures


def size(model: str, config: ModelConfig, gpu: str, memory: int, settings: Settings) -> Size:
    """Raises TooLittleMemory."""
    itemsize = ITEMSIZES[config.dtype if settings.dtype == "auto" else settings.dtype]
    longest = settings.max_model_len or config.max_position_embeddings
    placements = [Placement(config, itemsize, kv_itemsize, 1) for kv_itemsize in (itemsize, EIGHT_BITS)]
    blocks = [
        cache_blocks(
            memory,
            placement,
            block_size=BLOCK_SIZE,
            max_model_len=longest,
            max_num_seqs=settings.max_num_seqs,
            tokens_per_step=max(settings.max_num_batched_tokens or TOKENS_PER_STEP, settings.max_num_seqs),
            utilization=settings.gpu_memory_utilization,
        )
        for placement in placements
    ]
    return Size(
        model,
        gpu,
        placements[0].weight_bytes,
        blocks[0] * footprint.block_bytes(config, BLOCK_SIZE, itemsize),
        (blocks[0] * BLOCK_SIZE, blocks[1] * BLOCK_SIZE),
        {context: pair(context, blocks, settings.max_num_seqs) for context in CONTEXTS if context <= longest},
    )


def pair(context: int, blocks: Sequence[int], most: int) -> tuple[int, int]:
    """How many sequences of `context` tokens each cache holds at once, `most` at most."""
    each = -(-context // BLOCK_SIZE)
    return min(most, blocks[0] // each), min(most, blocks[1] // each)


def lines(sizes: Sequence[Size], failures: Sequence[str], settings: Settings) -> Iterator[str]:
    """A table in Markdown, what its columns are, and what does not fit."""
    if sizes:
        contexts = sorted({context for one in sizes for context in one.at_once}, reverse=True)
        yield row("Model", "GPU", "Weights", "Cache", "Tokens", *(f"of {context}" for context in contexts))
        yield row("---", "---", *["--:"] * (3 + len(contexts)))
        for one in sizes:
            chats = (both(*one.at_once[context]) if context in one.at_once else "" for context in contexts)
            yield row(one.model, one.gpu, gib(one.weight_bytes), gib(one.cache_bytes), both(*one.tokens), *chats)
        yield ""
        yield (
            "Tokens: what the cache holds of prompts and answers together. Then how many chats of so many tokens run "
            f"at once, {settings.max_num_seqs} at most (--max-num-seqs). In brackets: with --kv-dtype int8 or fp8."
        )
    if sizes and failures:
        yield ""
    yield from failures


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def both(plain: int, eight_bits: int) -> str:
    return f"{plain:_} ({eight_bits:_})"
