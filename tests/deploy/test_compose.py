"""The Compose files, and what they mount: options, keys, Prometheus, Grafana."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

import leoserve
from leoserve.settings import Settings, unknown_variables
from tests.conftest import ROOT, clean_environment
from tests.fake_hub import FakeHub

from .conftest import DEPLOY, program, run

FILES = ("compose.yaml", "compose.cpu.yaml", "compose.monitoring.yaml")


def document(file: str, **variables: str) -> dict[str, Any]:
    """A file as Compose reads it with these variables, and the defaults of all others."""
    text = (DEPLOY / file).read_text()
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1], match[2]), text)
    found: dict[str, Any] = yaml.safe_load(filled)
    return found


def services(file: str) -> dict[str, dict[str, Any]]:
    """A file's services."""
    found: dict[str, dict[str, Any]] = document(file)["services"]
    return found


EVERY = {(file, name): service for file in FILES for name, service in services(file).items()}
SERVERS = {file: services(file)["leoserve"] for file in ("compose.yaml", "compose.cpu.yaml")}
MONITORING = services("compose.monitoring.yaml")


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Where the service finds which of our files."""
    bound = [entry.split(":") for entry in service.get("volumes", ()) if entry.startswith(".")]
    assert all(mode == ["ro"] for _, _, *mode in bound)
    return {target: (DEPLOY / source).resolve() for source, target, *_ in bound}


def seconds(duration: str) -> float:
    """Of Compose's `90s`, `2m` or `1h`."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def test_they_are_compose_files() -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    done = run(check, "--builtin-schema", "vendor.compose-spec", *(DEPLOY / file for file in FILES))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", EVERY.values(), ids=" ".join)
def test_a_container_is_closed(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("service", EVERY.values(), ids=" ".join)
def test_what_is_mounted_exists(service: dict[str, Any]) -> None:
    assert [source for source in mounts(service).values() if not source.is_file()] == []


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_a_server_can_write_its_cache_and_tmp(server: dict[str, Any]) -> None:
    memory = {entry.partition(":")[0] for entry in server["tmpfs"]}
    named = {entry.split(":")[1] for entry in server.get("volumes", ())}
    assert {"/cache", "/tmp"} <= memory | named


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_a_server_is_built_from_the_dockerfile_as_its_variant_and_version(server: dict[str, Any]) -> None:
    variant = server["build"].get("args", {}).get("VARIANT", "cuda")
    suffix = {"cuda": "", "cpu": "-cpu"}[variant]
    assert server["image"] == f"ghcr.io/leoserve/leoserve:{leoserve.__version__}{suffix}"
    context = (DEPLOY / server["build"]["context"]).resolve()
    assert (context / server["build"]["dockerfile"]).read_text().startswith("# leoserve's image")


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_a_server_takes_its_options_and_is_given_the_time_to_end_its_answers(
    server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {name: value for name, value in server["environment"].items() if name.startswith("LEOSERVE_")}
    assert unknown_variables(ours) == []
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    given = mounts(server)
    if "LEOSERVE_CONFIG" in ours:
        monkeypatch.setenv("LEOSERVE_CONFIG", str(given[ours["LEOSERVE_CONFIG"]]))
    settings = Settings.load()
    assert settings.device == ("cuda" if "deploy" in server else "auto")
    assert seconds(server["stop_grace_period"]) == settings.shutdown_grace + 15
    assert settings.request_timeout is None or settings.shutdown_grace >= settings.request_timeout


def test_the_gpu_server_has_a_gpu_shared_memory_and_keys() -> None:
    server = SERVERS["compose.yaml"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert server["shm_size"] == "8gb"
    assert server["environment"]["LEOSERVE_API_KEY_FILE"] == "/run/secrets/api-keys"


def test_what_is_secret_comes_in_a_file_and_is_not_for_the_repository() -> None:
    server = SERVERS["compose.yaml"]
    paths = [value for value in server["environment"].values() if value.startswith("/run/secrets/")]
    assert sorted(paths) == [f"/run/secrets/{secret}" for secret in sorted(server["secrets"])]
    assert document("compose.yaml")["secrets"].keys() == set(server["secrets"])
    assert not {"HF_TOKEN", "LEOSERVE_HF_TOKEN", "LEOSERVE_API_KEY"} & server["environment"].keys()
    for secret in server["secrets"]:
        ignored = run("git", "check-ignore", f"deploy/{secret}", cwd=ROOT)
        assert ignored.returncode == 0, secret


@pytest.mark.parametrize("token", [None, "hf_of-a-secret"])
def test_the_hub_is_told_the_token_of_the_secret_if_there_is_one(tmp_path: Path, token: str | None) -> None:
    variables = {}
    if token is not None:
        (tmp_path / "hub-token").write_text(f"{token}\n")
        variables["HF_TOKEN_FILE"] = str(tmp_path / "hub-token")
    compose = document("compose.yaml", **variables)
    given = compose["services"]["leoserve"]["environment"]
    secrets = {f"/run/secrets/{name}": one["file"] for name, one in compose["secrets"].items()}
    hub_variables = {name: secrets.get(value, value) for name, value in given.items() if name.startswith("HF_")}
    files = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors"), b"{}")
    with FakeHub("LeoLM/leo-tiny", files).running() as hub:
        done = run(
            *(sys.executable, "-m", "leoserve", "download", hub.name, "--download-dir", tmp_path / "cache"),
            env=clean_environment(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", **hub_variables),
        )
    assert done.returncode == 0, done.stderr
    assert hub.tokens == {token and f"Bearer {token}"}


def test_prometheus_reads_its_configuration_and_the_charts_rules(tmp_path: Path) -> None:
    """Laid out as in the container, where the rules lie beside the configuration."""
    server = MONITORING["prometheus"]
    for target, source in mounts(server).items():
        place = tmp_path / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    (flag,) = [part for part in server["command"] if part.startswith("--config.file=")]
    done = run(program("promtool", "prometheus"), "check", "config", f"{tmp_path}{flag.partition('=')[2]}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 rule files found[\s\S]*SUCCESS: [1-9]\d* rules found", done.stdout), done.stdout


def test_prometheus_asks_the_server_that_either_file_starts() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == "leoserve"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert job["static_configs"] == [{"targets": ["leoserve:8000"]}]
    assert all(server["ports"][0].endswith(":8000") for server in SERVERS.values())


def test_grafana_finds_its_data_source_and_the_charts_dashboard() -> None:
    given = mounts(MONITORING["grafana"])
    provisioned = PurePosixPath("/etc/grafana/provisioning")
    (source,) = yaml.safe_load(given[f"{provisioned}/datasources/leoserve.yaml"].read_text())["datasources"]
    assert (source["type"], source["isDefault"], source["url"]) == ("prometheus", True, "http://prometheus:9090")
    (provider,) = yaml.safe_load(given[f"{provisioned}/dashboards/leoserve.yaml"].read_text())["providers"]
    folder = [path for target, path in given.items() if PurePosixPath(target).parent.match(provider["options"]["path"])]
    assert folder == [ROOT / "helm/leoserve/files/dashboard.json"]
    board = yaml.safe_load(folder[0].read_text())
    assert f"http://127.0.0.1:3000/d/{board['uid']}" in (DEPLOY / "compose.monitoring.yaml").read_text()
    assert [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "datasource"] == [
        source["type"]
    ]
