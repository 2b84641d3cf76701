"""Every preset, over the versions of Kubernetes: it renders, lints, and is what a cluster and its policies take."""

from __future__ import annotations

from functools import cache
from itertools import product

import helm_python
import pytest

from tests.helm import schemas
from tests.helm.engine import CHART, EXAMPLES, KUBE_VERSIONS, Rendering, example, render
from tests.helm.restricted import violations

DEFAULTS = "the defaults"
NAMES = [DEFAULTS, *(path.stem for path in EXAMPLES)]
NEEDS = {"air-gapped-image": "1.33"}  # image volumes are on by default from there


def values(name: str) -> dict[str, object]:
    return {} if name == DEFAULTS else example(name)


@cache
def rendered(name: str, kube_version: str) -> Rendering:
    return render(values(name), kube_version=kube_version)


def supported(name: str, kube_version: str) -> bool:
    return kube_version >= NEEDS.get(name, "1.29")


PAIRS = [pair for pair in product(NAMES, KUBE_VERSIONS) if supported(*pair)]


def test_there_is_a_preset_for_each_way_to_serve() -> None:
    sizes, ways = {"7b", "13b", "70b", "70b-two-nodes"}, {"cpu-demo", "several-models", "openshift"}
    assert sizes | ways | {"air-gapped-pvc", "air-gapped-image"} <= set(NAMES)


@pytest.mark.parametrize(("name", "kube_version"), PAIRS)
def test_it_is_what_kubernetes_takes(name: str, kube_version: str) -> None:
    found = {
        f"{one['kind']} {one['metadata']['name']}": errors
        for one in rendered(name, kube_version).objects
        if (errors := schemas.errors(one, kube_version))
    }
    assert found == {}


@pytest.mark.parametrize("name", NAMES)
def test_it_lints_strictly(name: str) -> None:
    version = NEEDS.get(name, KUBE_VERSIONS[0])
    report = helm_python.lint(CHART, values(name), strict=True, kube_version=f"v{version}.0")
    assert report["errors"] == []
    assert [one for one in report["messages"] if one["severity"] > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_its_pods_pass_the_restricted_profile(name: str) -> None:
    found = {
        pod.name: broken
        for pod in rendered(name, KUBE_VERSIONS[-1]).pods
        if (broken := violations(pod.spec, pod.metadata.get("annotations")))
    }
    assert found == {}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_to_begin(name: str) -> None:
    notes = rendered(name, KUBE_VERSIONS[-1]).notes
    assert "kubectl" in notes
    assert "<no value>" not in notes


@pytest.mark.parametrize("name", NEEDS)
def test_what_an_old_cluster_cannot_do_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(helm_python.HelmError, match=NEEDS[name]):
        render(example(name), kube_version="1.32")
