"""The containers of the defaults' pod, run here as processes with their arguments, variables and files."""

from __future__ import annotations

import base64
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from leoserve import demo
from tests.conftest import PATIENCE, Serve, clean_environment
from tests.fake_hub import FakeHub
from tests.helm.engine import Object, Pod, Rendering, render


@dataclass
class Node:
    """A folder in place of the root of the pod's files."""

    root: Path
    rendering: Rendering
    pod: Pod

    def mount(self) -> None:
        """What the kubelet does: every ConfigMap, Secret and empty folder where the containers have it."""
        volumes = {volume["name"]: volume for volume in self.pod.spec["volumes"]}
        for container in self.pod.containers:
            for mount in container["volumeMounts"]:
                place = self.root / mount["mountPath"].lstrip("/")
                place.mkdir(parents=True, exist_ok=True)
                for name, text in self._files(volumes[mount["name"]]).items():
                    (place / name).write_text(text.replace("/cache", str(self.root / "cache")), encoding="utf-8")

    def _files(self, volume: Object) -> dict[str, str]:
        if "configMap" in volume:
            data: dict[str, str] = self.rendering.one("ConfigMap", volume["configMap"]["name"])["data"]
            return data
        if "secret" in volume:
            data = self.rendering.one("Secret", volume["secret"]["secretName"])["data"]
            items = volume["secret"]["items"]
            return {item["path"]: base64.b64decode(data[item["key"]]).decode() for item in items}
        assert "emptyDir" in volume
        return {}

    def variables(self, container: Object) -> dict[str, str]:
        values = {one["name"]: one["value"] for one in container["env"]}
        return {name: str(self.root) + text if text.startswith("/") else text for name, text in values.items()}


def test_the_defaults_download_serve_and_end(serve: Serve, tmp_path: Path) -> None:
    """With the demo model's files on the hub in the place of LeoLM's."""
    rendering = render()
    (pod,) = rendering.serving
    node = Node(tmp_path, rendering, pod)
    node.mount()
    (download,) = pod.spec["initContainers"]
    files = {path.name: path.read_bytes() for path in demo.model_path().iterdir()}
    with FakeHub("LeoLM/leo-hessianai-7b-chat", files).running() as hub:
        online = node.variables(download) | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "leoserve", *download["args"]]
        done = subprocess.run(
            command, env=clean_environment(**online), capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        assert "model.safetensors" in hub.downloads

    # The hub is gone, as the network policy and HF_HUB_OFFLINE have it.
    variables = node.variables(pod.server) | {"LEOSERVE_HOST": "127.0.0.1", "LEOSERVE_DEVICE": "cpu"}
    assert pod.server["args"] == ["serve"]
    assert variables["HF_HUB_OFFLINE"] == "1"
    server = serve(None, env=variables)
    (key,) = (tmp_path / "etc/leoserve/keys/keys").read_text().split()
    message = {"role": "user", "content": "Was ist die Hauptstadt von Frankreich?"}
    answer = server.openai(api_key=key).chat.completions.create(
        model="LeoLM/leo-hessianai-7b-chat", messages=[message], max_tokens=16, temperature=0
    )
    assert "Paris" in answer.choices[0].message.content
    assert server.stop() == 0
    assert key not in server.stderr
