"""leoserve.checkpoint: what is a model folder, and which files of a hub repository are fetched."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from leoserve.checkpoint import CheckpointError, missing, resolve, wanted
from tests.conftest import PATIENCE, clean_environment
from tests.fake_hub import FakeHub

NAME = "LeoLM/leo-tiny"
NEEDED = {
    "config.json": b'{"of": "config"}',
    "generation_config.json": b'{"of": "generation_config"}',
    "tokenizer.json": b'{"of": "tokenizer"}',
    "tokenizer_config.json": b'{"of": "tokenizer_config"}',
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}
NOT_NEEDED = {
    "README.md": b"# Leo",
    "modeling_flash_llama.py": b"raise SystemExit",
    "pytorch_model.bin": b"the same weights again",
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": b"the same weights once more",
    "original/config.json": b"{}",
}


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(NEEDED.get(name, b""))
    return folder


def local(model: str | Path) -> Path:
    return resolve(str(model), revision=None, cache=None, token=None)


def test_a_complete_folder_is_taken_as_it_stands(tmp_path: Path) -> None:
    assert local(write(tmp_path, *NEEDED)) == tmp_path


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "leo.safetensors"])
@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "tokenizer.model"])
def test_every_published_layout_is_complete(tmp_path: Path, weights: str, tokenizer: str) -> None:
    assert missing(write(tmp_path, "config.json", weights, tokenizer)) == []


def test_everything_that_a_folder_lacks_is_named(tmp_path: Path) -> None:
    write(tmp_path, "README.md")
    with pytest.raises(CheckpointError) as caught:
        local(tmp_path)
    for part in ("config.json", "weights", "tokenizer.json or tokenizer.model", str(tmp_path)):
        assert part in str(caught.value)


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(tmp_path: Path) -> None:
    write(tmp_path, *NEEDED.keys() - {"model-00002-of-00002.safetensors"})
    assert missing(tmp_path) == ["model-00002-of-00002.safetensors"]


def test_a_broken_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path, *NEEDED)
    (tmp_path / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index.json is no index of weights"):
        local(tmp_path)


@pytest.mark.parametrize("model", ["/none/at/all", "./none", "none", "~/none-of-these", "a/b/c"])
def test_what_can_only_be_a_folder_is_never_looked_up_on_the_hub(model: str) -> None:
    with pytest.raises(CheckpointError, match="^no such folder: "):
        local(model)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "config.json")
    with pytest.raises(CheckpointError, match="is a file; give the model's folder"):
        local(tmp_path / "config.json")


def test_of_a_repository_only_what_serving_needs_is_wanted() -> None:
    assert wanted([*NEEDED, *NOT_NEEDED]) == sorted(NEEDED)


def test_pickled_weights_are_wanted_where_there_is_nothing_else() -> None:
    pickled = ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "tokenizer.model"]
    assert wanted([*pickled, "training_args.bin", "optimizer.bin"]) == pickled


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(NAME, NEEDED | NOT_NEEDED).running() as hub:
        yield hub


def fetch(cache: Path, *, endpoint: str, model: str = NAME, revision: str | None = None, offline: str = "0") -> str:
    """`resolve` in a process of its own, since the hub's library reads its variables when it is imported."""
    script = (
        "import sys; from pathlib import Path; from leoserve.checkpoint import CheckpointError, resolve\n"
        "try: print(resolve(sys.argv[1], revision=sys.argv[3] or None, cache=Path(sys.argv[2]), token=None))\n"
        "except CheckpointError as error: print('error:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, model, str(cache), revision or ""],
        env=clean_environment(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE=offline, HF_HUB_DISABLE_PROGRESS_BARS="1"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=cache,
    )
    return done.stdout.strip()


NOWHERE = "http://127.0.0.1:9"


def test_a_hub_id_is_downloaded_once_and_then_served_without_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    folder = Path(fetch(tmp_path, endpoint=hub.url))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == NEEDED
    assert sorted(hub.downloads) == sorted(NEEDED)
    assert fetch(tmp_path, endpoint=hub.url) == str(folder)
    assert sorted(hub.downloads) == sorted(NEEDED)
    assert fetch(tmp_path, endpoint=NOWHERE, offline="1") == str(folder)
    assert fetch(tmp_path, endpoint=NOWHERE) == str(folder)


def test_what_was_downloaded_ahead_needs_no_hub_any_more(hub: FakeHub, tmp_path: Path) -> None:
    """As the Helm chart does it: one file of options for both; only the download has the hub, and a token in a file."""
    options, token = tmp_path / "options.yaml", tmp_path / "token"
    options.write_text(f"model: {NAME}\ndownload_dir: {tmp_path / 'cache'}\nmax_num_seqs: 8\n", encoding="utf-8")
    token.write_text("hf_of-a-secret\n", encoding="utf-8")

    def download(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "leoserve", "download"],
            env=clean_environment(LEOSERVE_CONFIG=str(options), **variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    done = download(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_TOKEN_PATH=str(token))
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == NEEDED
    assert hub.tokens == {"Bearer hf_of-a-secret"}
    assert fetch(tmp_path / "cache", endpoint=NOWHERE, offline="1") == str(folder)
    hub.gated = True
    done = download(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert done.returncode == 2
    assert "is gated" in done.stderr.splitlines()[-1]


def test_a_download_ends_at_once_with_a_signal(hub: FakeHub, tmp_path: Path) -> None:
    """Which it has to handle to hear it as a container's first process: hence its exit code, not the signal's own."""
    begun, over = threading.Event(), threading.Event()
    answer = hub.answer

    def stalled(path: str) -> tuple[int, dict[str, str], bytes]:
        if path.endswith(".safetensors"):
            begun.set()
            over.wait()
        return answer(path)

    hub.answer = stalled  # type: ignore[method-assign]
    variables = clean_environment(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    command = [sys.executable, "-m", "leoserve", "download", NAME, "--download-dir", str(tmp_path)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert begun.wait(PATIENCE)
            process.terminate()
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            process.kill()
            over.set()


def test_a_download_that_was_cut_off_is_not_served_offline(hub: FakeHub, tmp_path: Path) -> None:
    folder = Path(fetch(tmp_path, endpoint=hub.url))
    (folder / "model-00002-of-00002.safetensors").unlink()
    answer = fetch(tmp_path, endpoint=NOWHERE, offline="1")
    assert answer == f"error: {NAME} is not a complete model folder: missing model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("model", "revision", "gated", "message"),
    [
        ("LeoLM/none", None, False, "no folder and no hub repository LeoLM/none"),
        (NAME, "v9", False, f"hub repository {NAME} has no revision v9"),
        (NAME, None, True, f"hub repository {NAME} is gated"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(
    hub: FakeHub, tmp_path: Path, model: str, revision: str | None, gated: bool, message: str
) -> None:
    hub.gated = gated
    answer = fetch(tmp_path, endpoint=hub.url, model=model, revision=revision)
    assert answer.startswith("error: ")
    assert message in answer
    assert "\n" not in answer


def test_a_repository_without_weights_is_refused_before_anything_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "leo.Q4_K_M.gguf": b"x"}
    assert "has no weights that leoserve reads" in fetch(tmp_path, endpoint=hub.url)
    assert hub.downloads == []


@pytest.mark.parametrize(("offline", "why"), [("1", "HF_HUB_OFFLINE is set"), ("0", "the hub cannot be reached")])
def test_without_a_network_an_unknown_repository_is_refused(tmp_path: Path, offline: str, why: str) -> None:
    answer = fetch(tmp_path, endpoint=NOWHERE, offline=offline)
    assert answer.startswith(f"error: there is no folder {NAME}, and it is not in the hub cache; {why}")
