"""The CPU image is built for real, and the demo answers from it as compose.cpu.yaml runs it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import leoserve
from deploy.lock import pins

from .conftest import DEPLOY
from .container import Container, running
from .image import Image

pytestmark = pytest.mark.timeout(1800)  # the first test builds the image

CHAT = """
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0)
question = {"role": "user", "content": "Was ist die Hauptstadt von Frankreich?"}
answer = client.chat.completions.create(model="leoserve-demo", messages=[question], temperature=0)
print(answer.choices[0].message.content)
"""


@pytest.fixture(scope="module")
def demo(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with running(image, service(), tmp_path_factory.mktemp("demo")) as container:
        yield container


@pytest.fixture(scope="module")
def stranger(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The demo as a user without a name, as OpenShift chooses one; it tells each module that it loads."""
    changed = {"tmpfs": ["/tmp:mode=1777", "/cache:gid=0,mode=0775"], "environment": {"PYTHONPROFILEIMPORTTIME": "1"}}
    with running(image, service() | changed, tmp_path_factory.mktemp("stranger"), user="1000680000:0") as container:
        yield container


def service() -> dict[str, Any]:
    """What compose.cpu.yaml says of the server."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.cpu.yaml").read_text())["services"]["leoserve"]
    return found


def places(image: Image) -> Iterator[tuple[str, os.stat_result]]:
    """Every file and folder of the image."""
    for folder, folders, files in os.walk(image.root):
        for name in folders + files:
            path = Path(folder, name)
            yield f"/{path.relative_to(image.root)}", path.lstat()


def test_the_demo_answers(demo: Container) -> None:
    done = demo.beside(CHAT)
    assert "Paris" in done.stdout, done.stderr


def test_the_image_has_a_client_too(demo: Container) -> None:
    done = demo.inside("leoserve", "chat", text="Was ist die Hauptstadt von Italien?\n/new\n" * 4)  # it samples
    assert (done.returncode, "Rom" in done.stdout) == (0, True), done


def test_it_runs_as_10001_without_rights_on_a_file_system_that_cannot_be_written(demo: Container) -> None:
    status = demo.inside("cat", "/proc/1/status").stdout
    assert re.findall(r"^(?:Uid|Gid|CapBnd|CapPrm|NoNewPrivs):\t(\S+)", status, re.MULTILINE) == [
        "10001",
        "0",
        "0" * 16,
        "0" * 16,
        "1",
    ]
    assert demo.inside("sh", "-c", "whoami; echo ~").stdout.split() == ["leoserve", "/cache"]
    for place in ("/", "/opt/leoserve", "/etc", "/usr/bin"):
        assert "Read-only file system" in demo.inside("touch", f"{place}/new").stderr
    for place in ("/cache", "/tmp", "/dev/shm"):
        assert demo.inside("touch", f"{place}/new").returncode == 0


@pytest.mark.parametrize("check", ["image", "compose"])
def test_the_health_check_asks_the_server(image: Image, demo: Container, check: str) -> None:
    healthy = image.config["Healthcheck"] if check == "image" else service()["healthcheck"]
    kind, *command = healthy["Test" if check == "image" else "test"]
    assert kind == "CMD"
    done = demo.inside(*command)
    assert done.returncode == 0, done.stderr
    without_server = demo.inside(*[part.replace("8000", "8001") for part in command])
    assert without_server.returncode != 0


def test_native_kernels_compute(demo: Container) -> None:
    assert re.search(r"attention kernels: native .*\n.*matrix products: native", demo.server.stderr)


def test_any_user_of_group_0_can_serve(stranger: Container) -> None:
    done = stranger.beside(CHAT)
    assert "Paris" in done.stdout, done.stderr


def test_a_server_finds_bytecode_of_all_that_it_loads(image: Image, stranger: Container) -> None:
    """A container cannot write it, and would compile the same modules at every start."""
    version = image.packages.parent.name.removeprefix("python").replace(".", "")
    loaded = set(re.findall(r"^import time: .*\| +([\w.]+)$", stranger.server.stderr, re.MULTILINE))
    places = (image.packages / name.replace(".", "/") for name in loaded)
    python = [place for place in places if not list(place.parent.glob(f"{place.name}.*.so"))]
    files = [file for place in python for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    assert len(files) > 1000
    compiled = {file: file.parent / f"__pycache__/{file.stem}.cpython-{version}.pyc" for file in files}
    assert [file for file, bytecode in compiled.items() if not bytecode.exists()] == []


def test_the_engine_is_told_how_to_start_stop_and_watch_it(image: Image) -> None:
    config = image.config
    assert (config["Entrypoint"], config["Cmd"], config["User"]) == (["leoserve"], ["serve"], "10001:0")
    assert (config["StopSignal"], list(config["ExposedPorts"])) == ("SIGTERM", ["8000/tcp"])
    assert config["Labels"]["org.opencontainers.image.version"] == leoserve.__version__
    assert {"title", "description", "source", "licenses", "revision", "documentation"} <= {
        name.removeprefix("org.opencontainers.image.") for name in config["Labels"]
    }


def test_every_cache_lies_under_cache(image: Image) -> None:
    variables = dict(value.split("=", 1) for value in image.config["Env"])
    written = [name for name in variables if name.endswith(("HOME", "_DIR", "CACHE_PATH"))]
    assert {"HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH"} <= set(written)
    assert {"XDG_CACHE_HOME", "XDG_CONFIG_HOME"} <= set(written)
    assert all(Path(variables[name]).is_relative_to("/cache") for name in written)


def test_it_holds_what_the_lock_says_and_nothing_else(image: Image) -> None:
    held = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in (
            info.name.removesuffix(".dist-info").split("-") for info in image.packages.glob("*.dist-info")
        )
    }
    python = image.packages.parent.name.removeprefix("python")
    locked = {
        pin.name: pin.version
        for file in ("requirements.txt", "requirements-cpu.txt")
        for pin in pins((DEPLOY / file).read_text(), python)
    }
    assert held == locked | {"leoserve": leoserve.__version__}


def test_nothing_in_it_can_be_written_or_change_its_user(image: Image) -> None:
    open_to_all, other_user = [], []
    for name, status in places(image):
        mode = status.st_mode
        if stat.S_ISLNK(mode) or stat.S_ISCHR(mode):
            continue
        if mode & 0o002 or (mode & 0o020 and status.st_gid == 0) or status.st_uid == 10001:
            open_to_all.append(name)
        if stat.S_ISREG(mode) and mode & 0o6000:
            other_user.append(name)
    assert sorted(open_to_all) == ["/cache", "/run/lock", "/tmp", "/var/tmp"]
    assert other_user == []


def test_nothing_lies_in_it_that_a_server_does_not_use(image: Image) -> None:
    names = {name for name, _ in places(image)}
    unused = re.compile(
        r".*-packages/pip(-[^/]*)?|.*/ensurepip|.*/bin/(pip[0-9.]*|cc|gcc|g\+\+|c\+\+)|/root/\.cache|/cache/.+|/tmp/.+"
        r"|/src(/.*)?|/var/lib/apt/lists/.*_Packages|.*-packages/(triton|nvidia)|.*-packages/torch/(test|include)"
    )
    assert [name for name in names if unused.fullmatch(name)] == []


def test_its_size_is_what_the_readme_says(image: Image) -> None:
    size = sum(
        status.st_size for name, status in places(image) if name.startswith("/opt/") and stat.S_ISREG(status.st_mode)
    )
    said = re.search(r"CPU image.*?(\d+) MB", (DEPLOY / "README.md").read_text(), re.DOTALL)
    assert said is not None
    assert size / 1e6 == pytest.approx(int(said[1]), rel=0.1)
