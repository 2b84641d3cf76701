"""The chart as an OCI artifact: packaged, pushed to a registry, pulled from there, and still the same."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest
import yaml

import leoserve
from tests.conftest import Server
from tests.helm.cluster import Cluster
from tests.helm.engine import CHART, NAMESPACE, NEWEST, RELEASE, chart, config, example, render
from tests.helm.test_mutation import shown

MOST_BYTES = 1 << 20  # a release is kept in a Secret of that size, with its chart in it


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an empty registry on loopback."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("Debian's docker-registry is not installed")
    folder = tmp_path_factory.mktemp("registry")
    settings = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(settings))
    command = [program, "serve", str(folder / "config.yml")]
    server = Server(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    try:
        yield server.wait_for(r'"listening on ([\d.]+:\d+)"')[1]
    finally:
        server.stop()


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
