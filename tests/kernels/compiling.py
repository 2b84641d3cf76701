"""Compiles Triton kernels for GPUs that are not here, exactly as their host functions would launch them.

A host function is called with CPU tensors while `record` stands in for the launch and for the GPU's capability; what it
would have launched is then compiled, and the machine code's use of registers, stack and shared memory is read from it.

Triton is either a compiler or an interpreter, from its import on, so this runs in a process of its own: `reports` calls
`python -m tests.kernels.compiling module:function major.minor`. The function is called with the capability
and yields (name, call): each call's launches are compiled and reported under its name.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]
Capability = tuple[int, int]
Scenario = tuple[str, Callable[[], object]]
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
KIB = 1024
SHARED = {(8, 0): 163 * KIB, (8, 9): 99 * KIB, (9, 0): 227 * KIB, (10, 0): 227 * KIB}  # bytes a program may use
REGISTERS = 255  # a thread may use
MATRIX_INSTRUCTION = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.[\w.:]+")  # in PTX


@dataclass(frozen=True)
class Report:
    """What one compiled kernel uses: `registers` a thread, `stack` bytes a thread, `shared` bytes a program.

    `multiplies` are the matrix instructions in it, each once.
    """

    scenario: str
    kernel: str
    registers: int
    stack: int
    shared: int
    warps: int
    multiplies: list[str]


@dataclass(frozen=True)
class Launch:
    """A kernel of Triton's and what it was to be launched with."""

    kernel: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]


def reports(scenarios: str, capability: Capability) -> list[Report]:
    """Compile what `scenarios` (module:function) launches on a GPU of this capability."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, (ROOT, ROOT / "server", ROOT / "kernels"))])
    command = [sys.executable, "-m", "tests.kernels.compiling", scenarios, ".".join(map(str, capability))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling failed:\n{done.stdout[-4000:]}{done.stderr[-8000:]}")
    return [Report(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


@contextmanager
def record(capability: Capability) -> Iterator[list[Launch]]:
    """Collects launches instead of doing them, for host functions that ask `tiles.capability` where they are."""
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: object, warmup: bool, **named: Any) -> None:
        launches.append(Launch(kernel, arguments, named))

    here = mock.patch("leokernels.triton.tiles.capability", return_value=capability)
    with mock.patch.object(JITFunction, "run", run), here:
        yield launches


def compile_launch(scenario: str, launch: Launch, capability: Capability) -> Report:
    """Specialized as Triton does at a launch: on tensors' alignment, numbers divisible by 16, and 1."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, named = launch.kernel, dict(launch.named)
    values = dict(zip(kernel.arg_names, launch.arguments, strict=False))
    values |= {name: named.pop(name) for name in list(named) if name in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        kind, aligned = _type(parameter, value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    made = triton.compile(source, target=target, options=named)
    registers, stack = _resources(made.asm["cubin"])
    multiplies = sorted(set(MATRIX_INSTRUCTION.findall(made.asm["ptx"])))
    used = made.metadata
    return Report(scenario, kernel.__name__, registers, stack, used.shared, used.num_warps, multiplies)


def _type(parameter: Any, value: Any) -> tuple[str, bool]:
    """An argument's type in a kernel's signature, and whether it is known to be divisible by 16."""
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype], not parameter.do_not_specialize_on_alignment
    if isinstance(value, float):
        return "fp32", False
    if parameter.do_not_specialize:
        return "i32", False
    return ("constexpr", False) if value == 1 else ("i32", value % 16 == 0)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return used["REG"], used["STACK"] + used["LOCAL"]


def main(scenarios: str, capability: Capability) -> None:
    module, _, function = scenarios.partition(":")
    found: Iterable[Scenario] = getattr(importlib.import_module(module), function)(capability)
    for name, call in found:
        with record(capability) as launches:
            call()
        for launch in launches:
            print(json.dumps(asdict(compile_launch(name, launch, capability))), flush=True)


if __name__ == "__main__":
    major, minor = map(int, sys.argv[2].split("."))
    main(sys.argv[1], (major, minor))
