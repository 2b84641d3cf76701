"""What the tests of deploy/ share: programs that may be missing, and the CPU image, built once."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import PATIENCE, ROOT

from .image import Image, build, release

DEPLOY = ROOT / "deploy"


def program(name: str, package: str) -> str:
    """The path of a program. Skips the test where it is missing; `package` is Debian's."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}, of Debian's package {package}")
    return found


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """deploy/Dockerfile's CPU variant, built for real and unpacked."""
    for name in ("buildah", "mmdebstrap", "runc"):
        program(name, name)
    if os.geteuid():
        pytest.skip("an image's files belong to several users, which only root can set up")
    # A disk takes minutes to write 4 GB of small files and to remove them; memory, where there is plenty, does not.
    memory = Path("/dev/shm")
    plenty = memory.is_dir() and min(psutil.virtual_memory().available, psutil.disk_usage("/dev/shm").free) > 12 << 30
    folder = Path(tempfile.mkdtemp(dir=memory)) if plenty else tmp_path_factory.mktemp("image")
    try:
        yield build(folder)
    finally:
        release(folder)


def run(*command: str | Path, timeout: float = PATIENCE, **options: object) -> subprocess.CompletedProcess[str]:
    """A finished command with what it said."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, **options)  # type: ignore[call-overload,no-any-return]
