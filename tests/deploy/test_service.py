"""The systemd unit: valid, closed, and nothing that a server needs is shut out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from leoserve.settings import Settings, unknown_variables
from tests.conftest import Server, clean_environment

from .conftest import DEPLOY, program, run

UNIT = DEPLOY / "leoserve.service"
ENVIRONMENT = DEPLOY / "leoserve.env"


def service() -> dict[str, list[str]]:
    """The keys of [Service], each with its values in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and (entry := re.match(r"(\w+)=(.*)", line)):
            found.setdefault(entry[1], []).append(entry[2])
    return found


def variables(*, commented: bool) -> dict[str, str]:
    """Of the env file; with `commented`, those that stand in it as suggestions."""
    pattern = r"^#(LEOSERVE_\w+)=(.*)$" if commented else r"^(LEOSERVE_\w+)=(.*)$"
    return dict(re.findall(pattern, ENVIRONMENT.read_text(), re.MULTILINE))


@cache
def calls(group: str) -> frozenset[str]:
    """The system calls of one of systemd's groups."""
    said = run(program("systemd-analyze", "systemd"), "syscall-filter", group, "--no-pager").stdout
    listed = [line.strip() for line in said.splitlines()[1:]]
    named = [name for name in listed if name and not name.startswith("#")]
    return frozenset().union(*(calls(name) if name.startswith("@") else {name} for name in named))


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """In a root of its own, with the command that an installation puts there."""
    command = tmp_path / "opt/leoserve/bin/leoserve"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    text = UNIT.read_text().replace("/opt/leoserve", str(tmp_path / "opt/leoserve"))
    (tmp_path / UNIT.name).write_text(text)
    done = run(program("systemd-analyze", "systemd"), "verify", "--man=no", tmp_path / UNIT.name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_its_exposure_is_what_the_readme_says_and_at_most_3() -> None:
    rate = (program("systemd-analyze", "systemd"), "security", "--offline=true", "--no-pager")
    done = run(*rate, "--threshold=30", UNIT)
    assert done.returncode == 0, done.stdout
    rated = re.search(r"Overall exposure level for \S+: (\S+)", done.stdout)
    said = re.search(r"exposure at (\S+)\s+of 10", (DEPLOY / "README.md").read_text())
    assert rated is not None
    assert said is not None
    assert rated[1] == said[1]


def test_its_env_file_has_options_that_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    suggested = variables(commented=True)
    assert {"LEOSERVE_MODEL", "LEOSERVE_HOST", "LEOSERVE_API_KEY_FILE"} <= suggested.keys()
    keys = tmp_path / "api-keys"
    keys.write_text("key\n")
    every = suggested | variables(commented=False) | {"LEOSERVE_API_KEY_FILE": str(keys)}
    assert unknown_variables(every) == []
    for name, value in every.items():
        monkeypatch.setenv(name, value)
    assert Settings.load().model == suggested["LEOSERVE_MODEL"]


def test_it_is_given_the_time_to_end_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(commented=False).items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert service()["TimeoutStopSec"] == [str(int(settings.shutdown_grace) + 15)]
    assert settings.request_timeout == settings.shutdown_grace


def test_every_cache_lies_where_it_may_write() -> None:
    unit = service()
    assert unit["ProtectSystem"] == ["strict"]
    (folder,) = unit["CacheDirectory"]
    places = dict(value.split("=", 1) for value in unit["Environment"] if not value.startswith("PYTHON"))
    assert {"HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH"} <= places.keys()
    assert all(Path(place).is_relative_to(f"/var/cache/{folder}") for place in places.values())


def test_a_gpus_devices_are_let_in_and_no_others() -> None:
    unit = service()
    assert "PrivateDevices" not in unit, "it would hide the GPU"
    assert unit["DevicePolicy"] == ["closed"]
    assert all(re.fullmatch(r"char-nvidia[a-z-]* rw", rule) for rule in unit["DeviceAllow"])


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server whose system calls fail as the unit's filter lets them, and what it asked of the kernel in vain."""
    unit = service()
    allowed, refused = (value.lstrip("~") for value in unit["SystemCallFilter"])
    assert unit["SystemCallErrorNumber"] == ["EPERM"]
    shut = sorted(calls("@known") - (calls(allowed) - calls(refused)))
    log = tmp_path_factory.mktemp("strace") / "calls"
    # A question mark lets strace pass over a call that this kind of processor does not have.
    names = ",".join(f"?{name}" for name in shut)
    # With -D the process that is started here is the server, and strace its grandchild.
    trace = ("-D", "-f", "-qq", "--seccomp-bpf", "--signal=none", "-o", str(log))
    filtered = ("-e", f"trace=socket,{names}", "-e", f"inject={names}:error=EPERM")
    command = (program("strace", "strace"), *trace, *filtered, sys.executable, "-m", "leoserve", "serve")
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1"], env=clean_environment(), stderr=subprocess.PIPE, text=True
    )
    server = Server(process)
    try:
        server.wait_for(r"leoserve is ready")
        yield server, log
    finally:
        server.stop()


def test_a_server_answers_under_its_filter_of_system_calls(confined: tuple[Server, Path]) -> None:
    server, log = confined
    question = {"role": "user", "content": "Was ist die Hauptstadt von Frankreich?"}
    answer = server.openai().chat.completions.create(model="leoserve-demo", messages=[question], temperature=0)
    assert "Paris" in answer.choices[0].message.content
    asked = set(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    assert asked == {"socket"}, "what else it asks is refused"


def test_a_server_needs_no_other_kind_of_socket(confined: tuple[Server, Path]) -> None:
    _, log = confined
    (families,) = service()["RestrictAddressFamilies"]
    used = set(re.findall(r"socket\((AF_\w+)", log.read_text()))
    assert used
    assert used <= set(families.split())
