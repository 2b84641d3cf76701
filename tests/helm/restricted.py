"""The Pod Security Standard "restricted", control by control, over a pod's spec.

The table is https://kubernetes.io/docs/concepts/security/pod-security-standards/ (policies "Baseline" and "Restricted"
for Linux, as of Kubernetes 1.34); image volumes, which its text does not name, are allowed as the admission plugin
allows them (pod-security-admission, check_restrictedVolumes.go).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Spec = dict[str, Any]

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}


def violations(spec: Spec, annotations: dict[str, str] | None = None) -> list[str]:
    """What of a pod's `spec` the profile forbids, a line each."""
    pod = spec.get("securityContext", {})
    found = [*_pod(spec, pod), *_apparmor_annotations(annotations or {})]
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind, []):
            found += [f"{container['name']}: {what}" for what in _container(container, pod)]
    return found


def _pod(spec: Spec, context: Spec) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is true"
    for volume in spec.get("volumes", []):
        for kind in volume.keys() - {"name"} - VOLUMES or ([] if len(volume) > 1 else ["no source"]):
            yield f"volume {volume['name']}: {kind}"
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _both(context)


def _both(context: Spec) -> Iterator[str]:
    """What is forbidden in a pod's security context as in a container's."""
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess is true"
    linux = context.get("seLinuxOptions", {})
    if linux.get("type", "") not in SELINUX_TYPES or linux.get("user") or linux.get("role"):
        yield f"seLinuxOptions {linux}"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield f"appArmorProfile {context['appArmorProfile']}"


def _apparmor_annotations(annotations: dict[str, str]) -> Iterator[str]:
    for name, value in annotations.items():
        if name.startswith("container.apparmor.security.beta.kubernetes.io/") and not (
            value in ("", "runtime/default") or value.startswith("localhost/")
        ):
            yield f"annotation {name}: {value}"


def _container(container: Spec, pod: Spec) -> Iterator[str]:
    context = container.get("securityContext", {})
    yield from _both(context)
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if context.get("procMount", "Default") != "Default":
        yield f"procMount {context['procMount']}"
    seccomp = context.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
    if seccomp not in ("RuntimeDefault", "Localhost"):
        yield f"seccompProfile {seccomp}"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities are not all dropped"
    if added := set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"capabilities added: {sorted(added)}"
    yield from (f"hostPort {port['hostPort']}" for port in container.get("ports", []) if port.get("hostPort"))
    yield from _hosts_called(container)


def _hosts_called(container: Spec) -> Iterator[str]:
    """Probes and hooks that call another host (from 1.34)."""
    probes = [container.get(f"{name}Probe", {}) for name in ("startup", "liveness", "readiness")]
    for action in [*probes, *container.get("lifecycle", {}).values()]:
        for way in ("httpGet", "tcpSocket"):
            if (action or {}).get(way, {}).get("host"):
                yield f"{way} calls {action[way]['host']}"
