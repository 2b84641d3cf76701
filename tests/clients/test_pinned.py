"""Clients whose requirements contradict the server's, in an environment of their own: pinned/requirements.txt."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import HERE
from tests.conftest import PATIENCE


@pytest.mark.parametrize("client", ["litellm", "instructor"])
@pytest.mark.timeout(1200)  # the first one waits for the environment
def test_a_client_works(client: str, pinned_python: Path, addresses: dict[str, str], tmp_path: Path) -> None:
    environment = {name: value for name, value in addresses.items() if name != "PYTHONPATH"}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would fetch a price list
    checks = HERE / "pinned" / f"{client}_checks.py"
    command = [pinned_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--noconftest"]
    done = subprocess.run(
        [*command, checks], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
