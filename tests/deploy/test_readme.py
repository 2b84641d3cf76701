"""Every command of deploy/README.md: run as it stands where that can be done here, else held against what it names."""

from __future__ import annotations

import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

import leoserve
from deploy.lock import pins
from tests.conftest import ROOT

from .conftest import DEPLOY, program, run

README = (DEPLOY / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
BUILD = [line for line in COMMANDS if re.match(r"docker (buildx )?build ", line)]
RUN = [line for line in COMMANDS if line.startswith("docker run ")]
COMPOSE = [line for line in COMMANDS if line.startswith("docker compose ")]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def words(line: str) -> list[str]:
    return shlex.split(line)


def values(line: str, option: str) -> list[str]:
    """What follows each `option`."""
    given = words(line)
    return [given[place + 1] for place, word in enumerate(given) if word == option]


def test_there_is_no_command_that_these_tests_do_not_know() -> None:
    first = {line.removeprefix("sudo ").split()[0].rpartition("/")[2] for line in COMMANDS}
    files = {"chmod", "chown", "echo", "install", "openssl", "useradd"}
    systemd = {"systemctl", "systemd-analyze"}
    scans = {"cyclonedx-py", "grype", "pip-audit", "syft", "trivy"}
    assert first == files | systemd | scans | {"curl", "docker", "make", "pip", "python3"}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_shell_can_read_it(block: str) -> None:
    done = run("bash", "-n", "-c", block)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"(?<![\w/:.@-])(?:deploy|helm)/[\w./-]*\w", "\n".join(COMMANDS)))
    named |= {f"deploy/{link}" for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", README)}
    made = {"deploy/api-keys", "deploy/hub-token", "deploy/.env"}
    assert made < named
    assert [name for name in named - made if not (ROOT / name).exists()] == []


def test_images_are_named_by_the_version() -> None:
    tags = set(re.findall(r"ghcr\.io/leoserve/leoserve:([^\s`]+)", README))
    assert tags == {leoserve.__version__, f"{leoserve.__version__}-cpu"}


@pytest.mark.parametrize("line", BUILD)
def test_a_build_names_arguments_that_the_dockerfile_has(line: str) -> None:
    assert values(line, "-f") == ["deploy/Dockerfile"]
    there = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert {argument.partition("=")[0] for argument in values(line, "--build-arg")} <= there
    for secret in values(line, "--secret"):
        assert f"type=secret,{secret.partition(',')[0]}," in DOCKERFILE
    for tag in values(line, "-t"):
        assert tag.endswith("cpu") == ("VARIANT=cpu" in line)


@pytest.mark.parametrize("line", RUN)
def test_a_container_is_as_closed_as_compose_closes_it(line: str) -> None:
    given = words(line)
    assert "--read-only" in given
    assert values(line, "--cap-drop") == ["ALL"]
    assert values(line, "--security-opt") == ["no-new-privileges"]
    assert values(line, "-p") == ["127.0.0.1:8000:8000"]
    memory = {place.partition(":")[0] for place in values(line, "--tmpfs")}
    volumes = {place.split(":")[1] for place in values(line, "-v")}
    assert memory | volumes == {"/cache", "/tmp"}


@pytest.mark.parametrize("line", COMPOSE)
def test_compose_files_together_have_what_they_depend_on(line: str) -> None:
    services: dict[str, dict[str, list[str]]] = {}
    for file in values(line, "-f"):
        services |= yaml.safe_load((ROOT / file).read_text())["services"]
    assert "leoserve" in services
    assert all(set(service.get("depends_on", ())) <= services.keys() for service in services.values())


@cache
def help_of(*command: str) -> str:
    done = run(*command, "--help")
    return done.stdout + done.stderr


@pytest.mark.parametrize("line", [*RUN, *(line for line in COMMANDS if re.search(r"\b(useradd|pip install) ", line))])
def test_a_program_knows_the_options_it_is_given(line: str) -> None:
    given = [word for word in words(line) if word != "sudo"]
    name = given[0].rpartition("/")[2]
    known = (
        [sys.executable, "-m", "pip"]
        if name == "pip"
        else [program(name, {"docker": "docker-cli"}.get(name, "passwd"))]
    )
    told = help_of(*known, *([] if name == "useradd" else [given[1]]))
    asked = [word for word in given if word.startswith("--")]
    assert [option for option in asked if not re.search(rf"(?<![\w-]){option}(?![\w-])", told)] == []


def test_the_bill_of_materials_has_every_locked_package(tmp_path: Path) -> None:
    (line,) = [line for line in COMMANDS if line.startswith("cyclonedx-py ")]
    bill = tmp_path / "sbom.json"
    command = [str(bill) if word == "sbom.json" else word for word in words(line)]
    done = run(Path(sys.executable).with_name(command[0]), *command[1:], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(bill.read_text())
    assert told["metadata"]["component"]["name"] == "leoserve"
    listed = {(part["name"], part["version"]) for part in told["components"]}
    assert listed == {(pin.name, pin.version) for pin in pins((DEPLOY / "requirements.txt").read_text())}


def test_the_files_of_the_service_are_installed_where_the_unit_looks(tmp_path: Path) -> None:
    """In a root of its own, with this user's group in place of the service's."""
    lines = [line for line in COMMANDS if "install -D" in line]
    assert len(lines) == 3
    for line in lines:
        here = re.sub(r" /etc/", f" {tmp_path}/etc/", line.replace("sudo ", "").replace("-g leoserve ", ""))
        done = run("bash", "-euo", "pipefail", "-c", here, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    made = {str(file.relative_to(tmp_path)): oct(file.stat().st_mode & 0o777) for file in tmp_path.rglob("*.*")}
    made |= {"etc/leoserve/api-keys": oct((tmp_path / "etc/leoserve/api-keys").stat().st_mode & 0o777)}
    assert made == {
        "etc/leoserve/leoserve.env": "0o600",
        "etc/leoserve/api-keys": "0o640",
        "etc/systemd/system/leoserve.service": "0o644",
    }
    unit = (DEPLOY / "leoserve.service").read_text()
    assert "EnvironmentFile=-/etc/leoserve/leoserve.env" in unit
    assert "LEOSERVE_API_KEY_FILE=/etc/leoserve/api-keys" in (DEPLOY / "leoserve.env").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", (tmp_path / "etc/leoserve/api-keys").read_text())


def test_the_exposure_can_be_asked_as_it_says() -> None:
    (line,) = [line for line in COMMANDS if line.startswith("systemd-analyze ")]
    program("systemd-analyze", "systemd")
    done = run(*words(line), cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_make_has_the_target() -> None:
    (line,) = [line for line in COMMANDS if line.startswith("make ")]
    done = run(*words(line), "--dry-run", cwd=ROOT)
    assert "deploy/lock.py" in done.stdout, done.stderr


def test_hadolint_has_nothing_to_say() -> None:
    done = run(Path(sys.executable).with_name("hadolint"), "--no-color", DEPLOY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
