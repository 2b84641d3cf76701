"""Every preset before checkov, whose requirements contradict the server's: it lives in an environment of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import PATIENCE
from tests.helm.engine import Object
from tests.helm.test_examples import NAMES, rendered

PINNED = Path(__file__).with_name("pinned") / "requirements.txt"

# What checkov wants and the chart does not do: where ("preset: resource"), and why.
EXCEPTIONS = {
    "CKV_K8S_8": (r".*: Pod\..*-(test|worker)", "liveness: a test ends by itself, and a worker with its group"),
    "CKV_K8S_9": (r".*: Pod\..*-(test|worker)", "readiness: neither of them serves anybody"),
    "CKV_K8S_11": (r".*", "a CPU limit: throttling lengthens every token while cores are idle; requests share fairly"),
    "CKV_K8S_15": (
        r".*",
        "pullPolicy Always: a release's tag never changes, and a registry may rest when a pod starts",
    ),
    "CKV_K8S_40": (r"openshift: .*", "a high uid: OpenShift gives one of the namespace's own range, above 1000000000"),
    "CKV_K8S_43": (r".*", "a digest: the tag is the chart's version; who wants the digest sets image.digest"),
}


@pytest.fixture(scope="module")
def checkov(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkov") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=PATIENCE)
    # Every package is pinned, so there is nothing to resolve.
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    subprocess.run([folder / "bin" / "python", *install, "-r", PINNED], check=True, timeout=PATIENCE)
    return folder / "bin" / "checkov"


def known(one: Object) -> list[Object]:
    """The object as checkov knows it: it looks into no pod of a LeaderWorkerSet, so that each is shown to it bare."""
    if one["kind"] != "LeaderWorkerSet":
        return [one]
    group = one["spec"]["leaderWorkerTemplate"]
    pods = []
    for role in ("leaderTemplate", "workerTemplate"):
        metadata = group[role]["metadata"] | {key: one["metadata"][key] for key in ("name", "namespace")}
        metadata["name"] += f"-{role.removesuffix('Template')}"
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group[role]["spec"]})
    return pods


@pytest.mark.timeout(1200)  # it waits for the environment
def test_checkov_finds_nothing_but_what_is_argued(checkov: Path, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    for name in NAMES:
        objects = [shown for one in rendered(name, "1.34").objects for shown in known(one)]
        (manifests / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))
    # Without skip-download it asks its maker's server for texts.
    options = ["--framework", "kubernetes", "--compact", "--quiet", "--skip-download", "-o", "json"]
    command = [str(checkov), *options, "-d", str(manifests)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 100 * len(NAMES)
    found = [
        (check["check_id"], f"{Path(check['file_path']).stem}: {check['resource']}", check["check_name"])
        for check in report["results"]["failed_checks"]
    ]
    assert [one for one in found if one[0] not in EXCEPTIONS or not re.fullmatch(EXCEPTIONS[one[0]][0], one[1])] == []
    assert EXCEPTIONS.keys() == {one[0] for one in found}, "an exception that nothing needs any more"
