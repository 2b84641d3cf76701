"""What `helm test` runs, against a real server with the options that the chart renders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE, Serve
from tests.helm.engine import example, is_hook, render


def test_the_test_hook_chats_with_a_server_of_the_rendered_options(serve: Serve, tmp_path: Path) -> None:
    rendering = render(example("cpu-demo"))
    options, keys = tmp_path / "options.yaml", tmp_path / "keys"
    options.write_text(rendering.one("ConfigMap")["data"]["options.yaml"], encoding="utf-8")
    keys.write_text("# teams\n\nsk-eins requests_per_minute=60\nsk-zwei\n", encoding="utf-8")
    (pod,) = [pod for pod in rendering.pods if is_hook(pod.owner)]
    (container,) = pod.spec["containers"]
    script = container["args"][0]

    def chat(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
        asked = {entry["name"]: entry["value"] for entry in container["env"]}
        assert asked.keys() == {"BASE_URL", "WAIT_SECONDS", "PROMPT", "KEY_FILE"}
        return subprocess.run(
            [sys.executable, "-c", script],
            env=asked | {"BASE_URL": url, "KEY_FILE": str(keys)} | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    server = serve(None, wait=False, env={"LEOSERVE_CONFIG": str(options), "LEOSERVE_API_KEY_FILE": str(keys)})
    server.wait_for(r'"address": "(http[^"]+)"')
    done = chat(server.url)  # which waits until the model is loaded
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("leoserve-demo: ")
    assert "Paris" in done.stdout

    keys.with_name("others").write_text("sk-drei\n", encoding="utf-8")
    done = chat(server.url, KEY_FILE=str(keys.with_name("others")))
    assert done.returncode == 1
    assert "401" in done.stderr

    done = chat("http://127.0.0.1:9", WAIT_SECONDS="0")
    assert done.returncode == 1
    assert done.stderr.startswith("http://127.0.0.1:9 is not ready: ")
