"""The wheel: all three packages with the demo model and the licence, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import leoserve
from tests.conftest import PATIENCE, ROOT

PACKAGES = {"leoserve": "server", "leokernels": "kernels", "leobench": "bench"}
MOST_BYTES = 20 << 20

pytestmark = pytest.mark.timeout(1200)  # the first test compiles the CPU's kernels


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=3 * PATIENCE)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


def test_it_holds_every_module_and_the_demo_model(wheel: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(ROOT / root).as_posix()
        for package, root in PACKAGES.items()
        for path in (ROOT / root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(wheel.namelist())
    assert sources <= names
    assert {f"leoserve/demo/model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")} <= names


def test_it_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist()} == {
        *PACKAGES,
        f"leoserve-{leoserve.__version__}.dist-info",
    }
    assert any(name.endswith("LICENSE") for name in wheel.namelist())
    assert Path(wheel.filename or "").stat().st_size < MOST_BYTES


def test_it_works_without_the_repository(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    script = (
        "from leoserve import cli, demo; print(demo.model_path().is_dir()); raise SystemExit(cli.main(['--version']))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == ["True", f"leoserve {leoserve.__version__}"], done.stderr
