"""What the pods are: who they run as, what they may write, how they start, end and get their configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from leoserve.settings import Settings, SettingsError
from tests.helm.engine import EXAMPLES, Pod, at, example, is_hook, merged, render
from tests.helm.restricted import violations
from tests.helm.test_examples import DEFAULTS, NAMES, rendered

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


@pytest.fixture(params=NAMES)
def pods(request: pytest.FixtureRequest) -> list[Pod]:
    return rendered(request.param, "1.34").pods


def test_no_account_token_and_no_service_links(pods: list[Pod]) -> None:
    for pod in pods:
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        assert pod.spec["enableServiceLinks"] is False, pod.name
        sources = [
            source
            for volume in pod.spec.get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
        ]
        assert not any("serviceAccountToken" in source for source in sources), pod.name


def test_the_root_is_read_only_and_the_caches_are_not(pods: list[Pod]) -> None:
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for container in pod.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        if any(one["name"] == "leoserve" for one in pod.containers):
            mounts = {mount["mountPath"]: mount for mount in pod.server["volumeMounts"]}
            assert not any(mounts[path].get("readOnly") for path in ("/cache", "/tmp", "/dev/shm"))
            assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
            assert all(mount.get("readOnly") for path, mount in mounts.items() if path.startswith("/etc/leoserve"))


def test_every_container_says_what_it_needs(pods: list[Pod]) -> None:
    for pod in pods:
        for container in pod.containers:
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, pod.name
            assert "memory" in container["resources"]["limits"], pod.name


def test_no_secret_is_a_value_of_a_variable(pods: list[Pod]) -> None:
    for pod in pods:
        for container in pod.containers:
            for variable in container.get("env", []):
                telling = any(word in variable["name"] for word in SECRET_WORDS)
                # The name of a file that holds one is no secret.
                assert not telling or variable.get("value", "/").startswith("/"), variable


def test_the_generated_key_is_in_its_secret_and_nowhere_else() -> None:
    rendering = render()
    secret = rendering.one("Secret", "leo-keys")
    (key,) = secret["data"].values()
    elsewhere = [one for one in rendering.objects if one is not secret]
    assert len(key) > 40
    assert key not in yaml.safe_dump(elsewhere) + rendering.notes


@pytest.mark.parametrize("seconds", [0.5, 30, 600, 7200])
@pytest.mark.parametrize("kube_version", ["1.29", "1.34"])
def test_the_grace_outlasts_the_longest_answer(seconds: float, kube_version: str) -> None:
    """The kubelet counts from before the preStop hook; the server's own grace is the longest request."""
    values = {"options": {"request_timeout": seconds}, "preStopSeconds": 20}
    rendering = render(values, kube_version=kube_version)
    (pod,) = rendering.serving
    options = yaml.safe_load(rendering.one("ConfigMap", "leo-options")["data"]["options.yaml"])
    assert options["shutdown_grace"] == options["request_timeout"] == seconds
    stop = pod.server["lifecycle"]["preStop"]
    slept = stop["sleep"]["seconds"] if kube_version == "1.34" else int(stop["exec"]["command"][1])
    assert slept == 20
    assert pod.spec["terminationGracePeriodSeconds"] >= 20 + seconds + 15


def test_a_start_may_take_as_long_as_is_said() -> None:
    (pod,) = render(at("probes.startupSeconds", 1801)).serving
    startup, liveness, readiness = (pod.server[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 1801
    assert (liveness["httpGet"]["path"], readiness["httpGet"]["path"]) == ("/health", "/ready")
    assert startup["httpGet"]["path"] == "/ready"


def test_another_option_makes_other_pods_and_another_key_does_not() -> None:
    def checksums(**options: object) -> dict[str, str]:
        (pod,) = render({"options": options}).serving
        return {name: text for name, text in pod.metadata["annotations"].items() if name.startswith("checksum/")}

    first = checksums(max_num_seqs=8)
    assert first == checksums(max_num_seqs=8)  # although the key that was generated is another one
    assert first != checksums(max_num_seqs=9)


def test_a_gpu_that_cannot_be_seen_is_no_reason_to_serve_on_the_cpu() -> None:
    """As with a driver too old for the image: the server then says so, instead of running out of memory."""
    assert options_of({})["device"] == "cuda"
    assert options_of(at("options.device", "auto"))["device"] == "auto"
    assert "device" not in options_of(example("cpu-demo"))


def options_of(values: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load(render(values).one("ConfigMap")["data"]["options.yaml"])
    return options


def test_a_rollout_needs_no_gpu_that_is_not_there() -> None:
    strategy = render(at("replicas", 3)).one("Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


def test_whoever_scales_owns_the_number_of_replicas() -> None:
    keda = {"by": "keda", "prometheus": "http://prometheus:9090"}
    assert render(at("replicas", 3)).one("Deployment")["spec"]["replicas"] == 3
    assert "replicas" not in render({"autoscaling": {"by": "hpa"}}).one("Deployment")["spec"]
    assert "replicas" not in render({"autoscaling": keda}).one("Deployment")["spec"]


@pytest.mark.parametrize("name", NAMES)
def test_the_server_takes_the_options_it_is_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server's own reading of its file; and every variable of its own is one that it knows.

    All but the number of GPUs that compute together, of which this version has no more than one.
    """
    rendering = rendered(name, "1.34")
    for pod in rendering.serving:
        variables = {one["name"]: one.get("value", "") for one in pod.server["env"]}
        options = next(volume for volume in pod.spec["volumes"] if volume["name"] == "options")
        file = tmp_path / "options.yaml"
        file.write_text(rendering.one("ConfigMap", options["configMap"]["name"])["data"]["options.yaml"])
        keys = tmp_path / "keys"
        keys.write_text("sk-one requests_per_minute=60\n")
        here = {"LEOSERVE_CONFIG": str(file), "LEOSERVE_API_KEY_FILE": str(keys)}
        for variable in variables:
            if variable.startswith("LEOSERVE_"):
                assert variable.removeprefix("LEOSERVE_").lower() in Settings.model_fields
                monkeypatch.setenv(variable, here.get(variable, variables[variable]))
        monkeypatch.delenv("LEOSERVE_TENSOR_PARALLEL_SIZE", raising=False)
        if "tensor_parallel_size" in file.read_text():
            with pytest.raises(SettingsError, match="no tensor parallelism yet"):
                Settings.load()
            monkeypatch.setenv("LEOSERVE_TENSOR_PARALLEL_SIZE", "1")
        settings = Settings.load()
        assert settings.shutdown_grace == settings.request_timeout
        assert settings.host == "0.0.0.0"
        assert (settings.api_key_file is not None) == ("LEOSERVE_API_KEY_FILE" in variables)


SERVERS_NODES: dict[str, Any] = {
    "gpu": {"count": 4},
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"},
    "tolerations": [{"key": "gpu-pool", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
}


def test_the_pod_that_chats_needs_no_node_of_the_servers() -> None:
    its_own: dict[str, Any] = {
        "nodeSelector": {"pool": "small"},
        "tolerations": [{"key": "pool", "operator": "Equal", "value": "small", "effect": "NoSchedule"}],
    }
    for values in ({}, its_own):
        rendering = render({**SERVERS_NODES, "test": values})
        (server,) = rendering.serving
        (pod,) = [pod for pod in rendering.pods if is_hook(pod.owner)]
        placed = SERVERS_NODES.keys() - {"gpu"}
        assert all(server.spec[name] == SERVERS_NODES[name] for name in placed)
        assert "nvidia.com/gpu" in server.server["resources"]["limits"]
        (chat,) = pod.containers
        assert chat["resources"].keys() == {"requests", "limits"}
        assert {name for named in chat["resources"].values() for name in named} == {"cpu", "memory"}
        tolerated = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}
        assert {name: pod.spec[name] for name in placed if name in pod.spec} == (values or tolerated)
        assert "topologySpreadConstraints" not in pod.spec


def test_the_download_alone_sees_the_hubs_token() -> None:
    (pod,) = render({"model": {"hub": {"tokenSecret": "hub-token"}}}).serving
    (download,) = pod.spec["initContainers"]
    (volume,) = [one for one in pod.spec["volumes"] if one.get("secret", {}).get("secretName") == "hub-token"]
    assert volume["name"] in [mount["name"] for mount in download["volumeMounts"]]
    assert volume["name"] not in [mount["name"] for mount in pod.server["volumeMounts"]]
    assert "HF_TOKEN" not in [variable["name"] for one in pod.containers for variable in one["env"]]


def test_a_folder_of_the_node_is_all_that_the_restricted_profile_forbids() -> None:
    """The source hostPath is for namespaces that allow it, and the notes say so."""
    rendering = render({"model": {"source": "hostPath", "hostPath": {"path": "/srv/leo"}}})
    (pod,) = rendering.serving
    assert violations(pod.spec) == ["volume model: hostPath"]
    assert "PodSecurity" in rendering.notes


def test_every_preset_is_about_something() -> None:
    """None renders what the defaults render."""
    bare = [one for one in rendered(DEFAULTS, "1.34").objects if one["kind"] != "Secret"]
    for path in EXAMPLES:
        assert bare != [one for one in render(merged(example(path.stem))).objects if one["kind"] != "Secret"], path.name
