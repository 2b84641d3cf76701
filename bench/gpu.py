"""Measures the GPU path of leoserve on the GPU at hand, unattended and in under nine minutes.

    python3 bench/gpu.py --out results        everything; needs a GPU, torch 2.11 and triton 3.6
    python3 bench/gpu.py --only attention     one stage (names: see --help)
    python3 bench/gpu.py --tiny               the same program on a CPU, with sizes that prove nothing but that it runs

Eight stages, each in a process of its own, so that a crash, a hang or a GPU in disarray costs one stage:

1. machine       versions, copy bandwidth, matrix products of LeoLM's shapes
2. kernels       each kernel against float32; a row alone against the row in a batch of 64, bit for bit
3. attention     decode in GB/s, prefill in TFLOP/s, beside PyTorch's FlashAttention-2; tiles to choose from
4. graphs        what recording CUDA graphs takes, and what replaying them gives
5. engine        7B in one process: time per token, prefill, overlap on and off, where the GPU's time goes
   http          7B through the server, if what it needs is installed
   transformers  7B by transformers' continuous batching, if it is installed
6. larger        13B, then caches of 8 bits

`results.json` is written after every measurement that comes in, `results.md` has the table of what was measured
against what the same machine can do, `results.log` what the stages said.

What the server needs and a machine with PyTorch, Triton and transformers may lack travels as wheels. Beforehand, in the
repository's root, for Python 3.12 (other platforms: other tags):

    python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .whl \
        annotated-types fastapi httpcore2 httptools httpx2 msgspec pydantic==PYDANTIC pydantic-core==CORE \
        pydantic-settings python-dotenv pyzmq sse-starlette starlette truststore typing-inspection uvicorn

where CORE is the pydantic-core that pydantic PYDANTIC asks for. And there, from the repository's root:

    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl \
        && export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 || exit
    python3 bench/gpu.py --out "$OUT"

and, with what is left of the time, `python3 -m pytest -q -p no:cacheprovider tests/gpu`.
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
