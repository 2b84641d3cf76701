"""The chart as an OCI artifact: packaged, pushed to a registry, pulled from there, and still the same."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import helm_python
import httpx
import pytest
import yaml

import leoserve
from tests.helm.cluster import Cluster
from tests.helm.engine import CHART, NAMESPACE, NEWEST, RELEASE, chart, config, example, render
from tests.helm.test_mutation import shown

MOST_BYTES = 1 << 20  # a release is kept in a Secret of that size, with its chart in it
START_SECONDS = 60.0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an empty registry on loopback."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("Debian's docker-registry is not installed")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        httpx.Client(transport=httpx.HTTPTransport(retries=8)).get(f"http://{address}/v2/", timeout=START_SECONDS)
        yield address
    finally:
        process.terminate()
        process.wait(START_SECONDS)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(helm_python.package(CHART, destination=tmp_path_factory.mktemp("package")))


def test_the_package_is_this_version_and_small(archive: Path) -> None:
    assert archive.name == f"leoserve-{chart().version}.tgz"
    assert chart().metadata["appVersion"] == leoserve.__version__
    assert archive.stat().st_size < MOST_BYTES / 4


def test_what_is_pulled_is_what_was_pushed(registry: str, archive: Path, tmp_path: Path) -> None:
    helm_python.push(archive, f"oci://{registry}/charts", plain_http=True)
    with helm_python.RegistryClient(plain_http=True) as client:
        assert client.tags(f"oci://{registry}/charts/leoserve") == [chart().version]
        helm_python.pull(
            f"oci://{registry}/charts/leoserve", client=client, version=chart().version, destination=tmp_path
        )
    pulled = tmp_path / archive.name
    assert helm_python.digest(pulled) == helm_python.digest(archive)
    with helm_python.Chart.load(pulled) as other:
        for name in ("cpu-demo", "several-models"):
            assert shown(render(example(name), of=other)) == shown(render(example(name)))


def test_it_installs_from_the_registry(registry: str, archive: Path) -> None:
    helm_python.push(archive, f"oci://{registry}/releases", plain_http=True)
    reference = f"oci://{registry}/releases/leoserve"
    with Cluster(NEWEST, namespaces={NAMESPACE: {}}) as cluster, config(cluster) as helm:
        helm.install(reference, RELEASE, chart_version=chart().version, plain_http=True, wait="hookOnly")
        assert cluster.get("Deployment", RELEASE, NAMESPACE)["status"]["availableReplicas"] == 1
