"""Measures the GPU path of leoserve on the GPU at hand, unattended and in under nine minutes.

    python3 bench/gpu.py --out results        everything; needs a GPU, torch 2.11 and triton 3.6
    python3 bench/gpu.py --only attention     one stage (names: see --help)
    python3 bench/gpu.py --tiny               the same program on a CPU, with sizes that prove nothing but that it runs

Ten stages, each in a process of its own, so that a crash, a hang or a GPU in disarray costs one stage. Seconds that
each may take, and GB of the GPU's memory that its tensors take at the most, counted over tensors without numbers:

1. machine        25 s    9 GB  versions, copy bandwidth, matrix products of LeoLM's shapes
2. kernels        60 s   30 GB  each kernel against float32; a row alone against the row in a batch of 64, bit for bit
                                (2.5 GB in each of 12 processes, which compile at the same time)
3. attention      60 s    8 GB  decode in GB/s, prefill in TFLOP/s, beside PyTorch's FlashAttention-2; other tiles
4. graphs         30 s   91 GB  what recording CUDA graphs takes, and what replaying them gives
5. engine         65 s   57 GB  7B in one process: time per token, prefill, overlap on and off, the GPU's idle time
   http           70 s    90 %  7B through the server, if what it needs is installed
   transformers   45 s    90 %  7B by transformers' continuous batching, if it is installed
   deterministic  35 s   57 GB  the deterministic matrix product beside the library's; its cost from end to end
6. larger         75 s   96 GB  13B, then caches of 8 bits
7. chain          45 s   20 GB  a step's kernels one after the other, with two products, early and not; grouped heads

What a stage leaves over goes to those after it; one that is cut keeps what it has measured. They ask no network.

`results.json` is written after every measurement that comes in, `results.md` has the table of what was measured
against what the same machine can do, `results.log` what the stages said.

What the server and the tests need and a machine with PyTorch, Triton and transformers may lack travels as wheels, 11 MB
in all. Beforehand, in the repository's root, for Python 3.12 on x86-64:

    python3 -m pip download -q --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .whl 'fastapi>=0.115,<1' \
        'httptools>=0.6.4,<1' 'httpx2>=2.12,<3' 'llguidance>=1.8,<2' 'msgspec>=0.20,<1' 'pydantic-settings>=2.10,<3' \
        'pyzmq>=26.4,<28' 'uvicorn>=0.40,<1' \
        'pytest>=9,<10' 'pytest-asyncio>=1.2,<2' 'pytest-timeout>=2.4,<3'

And there, in the repository's root, with `.whl` brought along and OUT the folder for results:

    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl \
        && export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 && python3 bench/gpu.py --out "$OUT"

Without the wheels stages 1 to 3 are measured all the same. In a second run, with the same installation before it:

    python3 -m pytest -q -p no:cacheprovider tests/gpu
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """The exit code: 0 when every stage came to its end."""
    roots = [str(ROOT / name) for name in ("server", "kernels", "bench")] + [str(ROOT)]
    sys.path[:0] = roots
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(roots + ([inherited] if inherited else []))
    from gpustages.command import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
