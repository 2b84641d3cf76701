"""The lock files hold all that pyproject.toml asks for, each package once, each file with its hash."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.lock import MACHINES, PYTHONS, Pin, pins
from tests.conftest import ROOT

from .conftest import DEPLOY

FILES = ("requirements.txt", "requirements-cpu.txt", "requirements-cuda.txt", "requirements-build.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VARIANTS = ("cpu", "cuda")


def locked(*files: str, python: str = "3.11") -> dict[str, Pin]:
    return {pin.name: pin for file in files for pin in pins((DEPLOY / file).read_text(), python)}


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_a_pin_with_hashes(file: str) -> None:
    """So that pip refuses whatever is not in it, and --require-hashes never meets a package without one."""
    lines = (DEPLOY / file).read_text().splitlines()
    pin = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.+]*( ; [a-z_]+ [<>=]+ '[0-9.]+')? \\")
    digest = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [
        line for line in lines if not (line.startswith("# ") or pin.fullmatch(line) or digest.fullmatch(line))
    ] == []
    assert all(found.hashes for found in pins("\n".join(lines)))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_project_asks_for_is_locked_within_its_ranges(variant: str, python: str) -> None:
    found = locked("requirements.txt", f"requirements-{variant}.txt", python=python)
    for asked in map(Requirement, PROJECT["project"]["dependencies"]):
        assert asked.specifier.contains(found[canonicalize_name(asked.name)].version), asked


def test_the_build_backend_is_locked_within_its_range() -> None:
    found = locked("requirements-build.txt")
    for asked in map(Requirement, PROJECT["build-system"]["requires"]):
        assert asked.specifier.contains(found[asked.name].version)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_package_is_locked_twice(variant: str, python: str) -> None:
    files = ("requirements.txt", f"requirements-{variant}.txt")
    names = Counter(pin.name for file in files for pin in pins((DEPLOY / file).read_text(), python))
    assert [name for name, times in names.items() if times > 1] == []


def test_both_variants_have_the_same_torch() -> None:
    cpu, cuda = (locked(f"requirements-{variant}.txt")["torch"] for variant in VARIANTS)
    assert cpu.version == f"{cuda.version}+cpu"
    assert len(cpu.hashes) == len(PYTHONS) * len(MACHINES)
    assert not set(cpu.hashes) & set(cuda.hashes)


def test_the_cpu_variant_has_nothing_of_cuda() -> None:
    names = set(locked("requirements.txt", "requirements-cpu.txt"))
    assert not {name for name in names if name.startswith(("nvidia", "cuda", "triton"))}


def test_what_torch_needs_is_locked_too() -> None:
    """As its CPU build says, which is installed here; the image's build asks all packages."""
    found = locked("requirements.txt", "requirements-cpu.txt")
    for needed in map(Requirement, requires("torch") or []):
        if needed.marker is None and not needed.name.startswith(("nvidia", "cuda", "triton")):
            assert needed.specifier.contains(found[canonicalize_name(needed.name)].version), needed


@pytest.mark.parametrize("file", FILES)
def test_no_index_is_named_as_an_option(file: str) -> None:
    """A lock holds on any mirror: pip's own settings say where packages come from."""
    assert not re.search(r"^\s*--(index|extra|find|trusted)", (DEPLOY / file).read_text(), re.MULTILINE)


def test_markers_that_always_hold_go_and_what_is_never_wanted_too() -> None:
    digest = "ab" * 32
    text = "\n".join(
        f"{requirement} \\\n    --hash=sha256:{digest}"
        for requirement in (
            "always==1 ; sys_platform == 'linux'",
            "never==1 ; sys_platform == 'win32'",
            "older==1 ; python_full_version < '3.12'",
        )
    )
    assert [(pin.name, pin.marker) for pin in pins(text)] == [
        ("always", ""),
        ("older", "python_full_version < '3.12'"),
    ]
    assert [pin.name for pin in pins(text, "3.12")] == ["always"]
    assert pins(text)[0].hashes == (digest,)
