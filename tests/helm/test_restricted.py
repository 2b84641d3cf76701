"""The checks of the restricted profile find each thing that the standard forbids."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.engine import merged
from tests.helm.restricted import violations
from tests.helm.test_cluster import QUIET

ONE = QUIET["containers"][0]  # type: ignore[index]

FORBIDDEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hostNetwork is true": ({"hostNetwork": True}, {}),
    "hostPID is true": ({"hostPID": True}, {}),
    "hostIPC is true": ({"hostIPC": True}, {}),
    "volume a: hostPath": ({"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}, {}),
    "volume a: nfs": ({"volumes": [{"name": "a", "nfs": {"server": "x", "path": "/"}}]}, {}),
    "sysctl kernel.msgmax": ({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}, {}),
    "runAsUser is 0": ({"securityContext": {"runAsUser": 0}}, {}),
    "web: runAsUser is 0": ({}, {"securityContext": {"runAsUser": 0}}),
    "web: privileged": ({}, {"securityContext": {"privileged": True}}),
    "web: allowPrivilegeEscalation is not false": ({}, {"securityContext": {"allowPrivilegeEscalation": True}}),
    "web: runAsNonRoot is not true": ({}, {"securityContext": {"runAsNonRoot": False}}),
    "web: procMount Unmasked": ({}, {"securityContext": {"procMount": "Unmasked"}}),
    "web: seccompProfile Unconfined": ({}, {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
    "web: capabilities are not all dropped": ({}, {"securityContext": {"capabilities": {"drop": ["CHOWN"]}}}),
    "web: capabilities added: ['SYS_ADMIN']": ({}, {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
    "web: seLinuxOptions {'type': 'spc_t'}": ({}, {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}),
    "web: appArmorProfile {'type': 'Unconfined'}": (
        {},
        {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
    ),
    "web: hostPort 80": ({}, {"ports": [{"containerPort": 80, "hostPort": 80}]}),
    "web: httpGet calls 10.0.0.1": ({}, {"livenessProbe": {"httpGet": {"host": "10.0.0.1", "port": 1}}}),
}


def test_a_quiet_pod_passes() -> None:
    assert violations(QUIET) == []


@pytest.mark.parametrize("sentence", FORBIDDEN)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_it_finds(sentence: str, kind: str) -> None:
    pod, container = FORBIDDEN[sentence]
    spec = merged(QUIET, pod, {kind: [merged(ONE, container)]})
    assert violations(spec) == [sentence]


def test_it_finds_an_annotation_that_turns_apparmor_off() -> None:
    name = "container.apparmor.security.beta.kubernetes.io/web"
    assert violations(QUIET, {name: "unconfined"}) == [f"annotation {name}: unconfined"]
