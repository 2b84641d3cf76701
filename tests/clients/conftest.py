"""Servers for the clients, and the environments of those that cannot live in this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Serve, Server, clean_environment

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def narrow_server(serve_once: Serve) -> Server:
    """Answers one request at a time and lets two wait: whoever else comes is refused."""
    return serve_once(None, "--max-num-seqs", "1", "--max-waiting-requests", "2")


@pytest.fixture(scope="session")
def keyed_server(serve_once: Serve) -> Server:
    """Wants the key "geheim"."""
    return serve_once(None, "--api-key", "geheim")


@pytest.fixture(scope="session")
def addresses(demo_server: Server, narrow_server: Server, keyed_server: Server) -> dict[str, str]:
    """The environment of a client in a process of its own."""
    return clean_environment(
        LEOSERVE_URL=demo_server.url, LEOSERVE_NARROW_URL=narrow_server.url, LEOSERVE_KEYED_URL=keyed_server.url
    )


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of the lock file, where Node.js runs our tests."""
    if not (shutil.which("node") and shutil.which("npm")):
        reason = "Node.js and npm are not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("node") / "javascript"
    shutil.copytree(HERE / "javascript", folder)
    subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True, timeout=PATIENCE)
    return folder


@pytest.fixture(scope="session")
def pinned_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with clients whose requirements contradict the server's."""
    folder = tmp_path_factory.mktemp("pinned") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=PATIENCE)
    python = folder / "bin" / "python"
    # Every package is pinned, so there is nothing to resolve.
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    subprocess.run([python, *install, "-r", HERE / "pinned" / "requirements.txt"], check=True, timeout=PATIENCE)
    return python
