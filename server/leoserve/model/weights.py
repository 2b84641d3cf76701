"""From a checkpoint's files into the network: memory-mapped, tensor by tensor, cast on the way into place.

Two formats, each in one file or sharded, with an index or without: `.safetensors`, and `.bin` as torch pickles it. A
pickle is never executed: torch's restricted unpickler builds tensors and containers and refuses everything else. The
pages of a mapped file are dropped once they are copied, so that memory holds the weights and little more.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leoserve.model.config import ModelConfig
from leoserve.model.llama import Llama

Progress = Callable[[int, int], None]  # bytes done, bytes in all

SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
CHUNK_BYTES = 64 << 20  # copied between two reports of progress and two drops of pages


class WeightsError(Exception):
    """Files that are missing, broken or of another network; the message is one line that names the file or tensor."""


def load_weights(model: Llama, folder: Path, config: ModelConfig, *, progress: Progress | None) -> int:
    """Fill the network from the folder's files. Returns the bytes of its parameters. Raises WeightsError.

    `progress` is told the bytes of the files' tensors that are in place, and of all of them.
    """
    files = find_files(folder)
    total = sum(file.stat().st_size for file in files)
    missing = model.destinations()
    size = sum(tensor.nbytes for tensor in missing.values())
    loaded: set[str] = set()
    done = 0
    for file in files:
        for name, source in read_tensors(file):
            if name in loaded:
                raise WeightsError(f"{file} holds {name}, which another file held already")
            destination = missing.pop(name, None)
            if destination is not None:
                loaded.add(name)
                _check_shape(file, name, source, destination)
                for part in _copy(source, destination):
                    done += part
                    _report(progress, done, total)
            elif not _is_derived(name, config):
                raise WeightsError(f"{file} holds {name}, which has no place in a network of this config.json")
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(f"{folder}: the weights have no tensor {next(iter(missing))}{more}")
    _report(progress, total, total)
    return size


def find_files(folder: Path) -> list[Path]:
    """The files with the weights, safetensors where there are both formats. Raises WeightsError."""
    for suffix, single in ((".safetensors", "model.safetensors"), (".bin", "pytorch_model.bin")):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            return _indexed(index)
        stem = single.removesuffix(suffix)
        shards = sorted(folder.glob(f"{stem}-[0-9]*-of-[0-9]*{suffix}"))
        if shards:
            return _complete(shards, folder)
    raise WeightsError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor shards of either"
    )


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors by name, as views of its mapped pages. Raises WeightsError."""
    return _read_pickle(file) if file.suffix == ".bin" else _read_safetensors(file)


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is not an index of weights: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{index} names {name!r}, which is not a file of its own folder")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index.parent} has no {name}, which {index.name} names: download it again")
    if not names:
        raise WeightsError(f"{index} names no files")
    return [index.parent / name for name in names]


def _complete(shards: list[Path], folder: Path) -> list[Path]:
    count = int(shards[0].stem.rpartition("-of-")[2])
    if len(shards) != count:
        raise WeightsError(f"{folder} has {len(shards)} of {count} shards like {shards[0].name}: download it again")
    return shards


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The format: the header's length in 8 bytes, the header as JSON, then the tensors' bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise WeightsError(f"{file} is not a safetensors file, or it is cut short: download it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
        except (ValueError, AttributeError) as error:
            raise WeightsError(f"{file} has a broken safetensors header: {error!r}") from error
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            for name, entry in sorted(header.items(), key=lambda item: _offset(item[1])):
                yield name, _mapped_tensor(file, mapped, 8 + length, name, entry)


def _offset(entry: Any) -> int:
    try:
        return int(entry["data_offsets"][0])
    except (KeyError, TypeError, IndexError, ValueError):
        return 0


def _mapped_tensor(file: Path, mapped: mmap.mmap, data: int, name: str, entry: Any) -> Tensor:
    try:
        kind, shape, (begin, end) = entry["dtype"], [int(side) for side in entry["shape"]], entry["data_offsets"]
        dtype = SAFETENSORS_DTYPES.get(kind)
        count = 1
        for side in shape:
            count *= side
        in_file = 0 <= begin <= end <= len(mapped) - data
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{file}: the header's entry of {name} is broken: {error!r}") from error
    if dtype is None:
        raise WeightsError(f"{file}: {name} is of type {kind}; served are {', '.join(SAFETENSORS_DTYPES)}")
    if not in_file or end - begin != count * dtype.itemsize:
        raise WeightsError(f"{file}: {name} does not lie within the file: it is cut short, download it again")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=data + begin).view(shape)


def _read_pickle(file: Path) -> Iterator[tuple[str, Tensor]]:
    if not zipfile.is_zipfile(file):
        raise WeightsError(
            f"{file} is not a file of torch.save's present format, or it is cut short: pickles from before PyTorch 1.6 "
            "cannot be memory-mapped; convert the checkpoint to safetensors"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"its pickle asks for {found[1]}, and weights are tensors only" if found else "its pickle is broken"
        raise WeightsError(f"{file} is refused, and nothing of it was executed: {what}") from error
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise WeightsError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds a {type(content).__name__}, not tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise WeightsError(f"{file}: {name!r} is not a plain tensor")
        if not tensor.is_floating_point():
            raise WeightsError(f"{file}: {name} is of type {tensor.dtype}; served are float32, float16 and bfloat16")
        yield name, tensor


def _check_shape(file: Path, name: str, source: Tensor, destination: Tensor) -> None:
    if source.shape != destination.shape:
        raise WeightsError(
            f"{name} is {_by(source)} in {file.name}, and config.json makes it {_by(destination)}: "
            "config and weights are of different models"
        )


def _by(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _copy(source: Tensor, destination: Tensor) -> Iterator[int]:
    """Copy by rows of at most CHUNK_BYTES, and say how many bytes of the source each piece was."""
    rows = max(1, CHUNK_BYTES // max(1, source[:1].nbytes))
    for begin in range(0, source.shape[0], rows):
        piece = source[begin : begin + rows]
        destination[begin : begin + rows].copy_(piece)
        _drop_pages(piece)
        yield piece.nbytes


def _is_derived(name: str, config: ModelConfig) -> bool:
    """Tensors that older checkpoints carry although the config says all about them."""
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _drop_pages(tensor: Tensor) -> None:
    """Give back the mapped file's pages that lie within this tensor; a later read would fetch them again."""
    if sys.platform != "linux" or not tensor.is_contiguous():
        return
    page = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > begin:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
