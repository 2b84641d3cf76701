"""The house's rules that tools can hold: who may import whom, and what the API process never loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PATIENCE, ROOT, clean_environment


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_imports_point_along_the_line() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["leoserve.serve", "leoserve.lifecycle", "leoserve.api.app", "leoserve.chat"])
def test_the_api_process_loads_neither_torch_nor_transformers(module: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    done = run("-c", f"import sys, {module}; print(sorted({heavy}))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_and_errors_load_no_web_framework() -> None:
    script = (
        "import sys; from leoserve.cli import main\n"
        "code = main(['serve', '--port', '99999'])\n"
        "print(code, sorted({'fastapi', 'uvicorn', 'zmq', 'tokenizers', 'huggingface_hub'} & sys.modules.keys()))"
    )
    done = run("-c", script)
    assert done.stdout.strip() == "2 []", done.stdout + done.stderr
