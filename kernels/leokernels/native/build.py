"""Compiles the library, once for each instruction set that it may meet. Needs a C++20 compiler and nothing else.

    python kernels/leokernels/native/build.py [folder of the libraries]

It runs when the package is built, by hatch_build.py, and by hand. Without a compiler the package is whole all the same:
leokernels then computes with torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")
# Compiler flags by variant. The loader (__init__.py) says which processor gets which.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512pairs": (*AVX512, "-mavx512bf16", "-DPAIRS"),  # bfloat16 multiplied in pairs
        "avx512": AVX512,
        "avx2": ("-mavx2", "-mfma"),
    },
    "aarch64": {"base": ()},
}
# Sums are taken as they are written: contracted or reordered, a row's bits would depend on the kernel it falls into.
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra")


class CannotBuild(Exception):
    """One line: what is missing, or what the compiler said."""


def library(variant: str) -> str:
    """The file's name."""
    return f"_leonative_{variant}.so"


def build(folder: Path = HERE) -> list[Path]:
    """Compile every variant for this kind of processor into `folder`. Raises CannotBuild."""
    variants = VARIANTS.get(platform.machine()) if sys.platform == "linux" else None
    if variants is None:
        raise CannotBuild(f"no variant for {platform.machine()} on {sys.platform}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        raise CannotBuild("no C++ compiler was found (g++, clang++, or the environment's CXX)")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(lambda name: _compile(compiler, name, variants[name], folder), variants))


def _compile(compiler: str, variant: str, flags: tuple[str, ...], folder: Path) -> Path:
    target = folder / library(variant)
    draft = target.with_suffix(f".{os.getpid()}")  # a process that has the old one loaded keeps it
    sources = sorted(str(file) for file in HERE.glob("*.cpp"))
    try:
        done = subprocess.run(
            [*compiler.split(), *FLAGS, *flags, *sources, "-o", str(draft)], capture_output=True, text=True
        )
    except OSError as error:
        raise CannotBuild(f"{compiler} cannot be run: {error}") from error
    if done.returncode:
        draft.unlink(missing_ok=True)
        raise CannotBuild(f"{compiler} failed on {variant}: {done.stderr.strip()[-2000:]}")
    draft.replace(target)
    return target


if __name__ == "__main__":
    try:
        for made in build(*map(Path, sys.argv[1:2])):
            print(made)
    except CannotBuild as error:
        sys.exit(f"leokernels.native was not built: {error}")
