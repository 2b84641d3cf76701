"""Write the lock files of this folder: every package of an installation, pinned, with the hash of each of its files.

    python deploy/lock.py     (or: make lock, which installs uv for it)

| file | packages |
|---|---|
| requirements.txt | all but torch and what only its CUDA build needs; the same for both variants |
| requirements-cuda.txt | torch as PyPI has it, Triton, and NVIDIA's libraries |
| requirements-cpu.txt | torch as PyTorch's own index of CPU builds has it |
| requirements-build.txt | what builds leoserve itself |

They hold for CPython 3.11 to 3.14 on Linux, x86_64 and aarch64. The two variants have torch in one version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote

from packaging.markers import Marker

DEPLOY = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_ONLY = re.compile(r"torch|triton|nvidia-.+|cuda-.+")
WHEEL = re.compile(
    r"torch-(?P<version>[^-]+)-cp(?P<python>3\d+)-cp(?P=python)-manylinux\w+_(?P<machine>x86_64|aarch64)\.whl"
)


class CannotLock(Exception):
    """One line that says what is missing."""


@dataclass(frozen=True)
class Pin:
    """One package of a lock file. `marker` is empty where every environment takes it."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        requirement = f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n    ".join([requirement, *(f"--hash=sha256:{value}" for value in self.hashes)])


def environments(*pythons: str) -> Iterator[dict[str, str]]:
    """Those that the files hold for, as markers ask about them; of `pythons` if any are given."""
    for python, machine in product(pythons or PYTHONS, MACHINES):
        yield {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": "linux",
        }


def pins(text: str, *pythons: str) -> list[Pin]:
    """Of a requirements file, for `pythons` (all). A marker that always holds goes, and so does what none wants."""
    found = []
    for entry in re.split(r"\n(?=\S)", text):
        if not (head := re.match(r"([a-z0-9-]+)==(\S+?)(?: ; ([^\\\n]+?))?(?: \\)?(?:\n|$)", entry)):
            continue
        name, version, marker = head[1], head[2], head[3] or ""
        wanted = [not marker or Marker(marker).evaluate(environment) for environment in environments(*pythons)]
        if any(wanted):
            hashes = tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)))
            found.append(Pin(name, version, "" if all(wanted) else marker, hashes))
    return found


def resolve(*sources: str, text: str = "") -> list[Pin]:
    """What uv takes from PyPI for `sources`, of which "-" is `text`. Raises CannotLock."""
    command = ["uv", "pip", "compile", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(
        [*command, "--python-version", PYTHONS[0], *sources],
        cwd=DEPLOY.parent,
        input=text,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CannotLock(done.stderr.strip())
    return pins(done.stdout)


def cpu_build(version: str, file: Path) -> Pin:
    """torch's CPU builds of `version`.

    Where PyTorch's index cannot be reached, `file` stays as it is if it has that version. Raises CannotLock otherwise.
    """
    local = f"{version}+cpu"
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=30) as page:
            links = re.findall(r'href="([^"#]+)#sha256=([0-9a-f]{64})"', page.read().decode())
    except URLError as error:
        before = pins(file.read_text()) if file.exists() else []
        if [pin.version for pin in before] != [local]:
            raise CannotLock(
                f"{CPU_INDEX} has the hashes of torch {local} and cannot be reached: {error.reason}"
            ) from error
        print(f"{CPU_INDEX} cannot be reached; {file.name} stays as it is", file=sys.stderr)
        return before[0]
    wheels = [(WHEEL.fullmatch(unquote(link.rpartition("/")[2])), value) for link, value in links]
    wanted = [name.replace(".", "") for name in PYTHONS]
    hashes = {value for wheel, value in wheels if wheel and wheel["version"] == local and wheel["python"] in wanted}
    if len(hashes) != len(PYTHONS) * len(MACHINES):
        raise CannotLock(f"{CPU_INDEX} has {len(hashes)} of {len(PYTHONS) * len(MACHINES)} builds of torch {local}")
    return Pin("torch", local, "", tuple(sorted(hashes)))


def write(file: Path, what: str, packages: list[Pin]) -> None:
    """`what` is the comment on top."""
    file.write_text("\n".join([f"# {what} Written by `make lock`.", *map(str, packages)]) + "\n")
    print(f"{file.name}: {len(packages)} packages")


def main() -> None:
    everything = resolve("pyproject.toml")
    build = re.search(r'^requires = \["([^"]+)"\]', (DEPLOY.parent / "pyproject.toml").read_text(), re.MULTILINE)
    if build is None:
        raise CannotLock("pyproject.toml names no build backend")
    cuda = [pin for pin in everything if CUDA_ONLY.fullmatch(pin.name)]
    common = [pin for pin in everything if pin not in cuda]
    torch = next(pin.version for pin in cuda if pin.name == "torch")
    file = DEPLOY / "requirements-cpu.txt"
    cpu = cpu_build(torch, file)
    write(DEPLOY / "requirements.txt", "All that leoserve needs but torch, which comes by variant.", common)
    write(DEPLOY / "requirements-cuda.txt", "torch with CUDA, and what only that needs.", cuda)
    write(file, f"torch without CUDA, from {CPU_INDEX}.", [cpu])
    write(DEPLOY / "requirements-build.txt", "What builds leoserve's own package.", resolve("-", text=build[1]))


if __name__ == "__main__":
    try:
        main()
    except CannotLock as error:
        sys.exit(f"Not locked: {error}")
