"""leoserve.cli and leoserve.serve: what a user can get wrong costs one line that says what to do, and exit code 2."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import leoserve
from leoserve.elsewhere import INSTEAD
from leoserve.listening import StartError, bind, listen
from leoserve.serve import curl
from leoserve.settings import Settings, flag
from tests.checkpoints import random_weights, write_checkpoint, write_weights
from tests.conftest import PATIENCE, ROOT, clean_environment


def leoserve_command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leoserve", *arguments],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
    )


def refusal(*arguments: str, **variables: str) -> str:
    """The last line of a `leoserve serve` that ends with exit code 2 and no traceback: its error."""
    done = leoserve_command("serve", "--port", "0", "--threads", "1", *arguments, **variables)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("leoserve: error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    return errors[0].removeprefix("leoserve: error: ")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "leo", "7b")


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint whose config.json differs."""

    def change(**entries: object) -> Path:
        for path in checkpoint.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "config.json").write_text(json.dumps(config | entries), encoding="utf-8")
        return tmp_path

    return change


def test_version_is_printed() -> None:
    done = leoserve_command("--version")
    assert (done.returncode, done.stdout) == (0, f"leoserve {leoserve.__version__}\n")


def test_help_of_serve_shows_every_option() -> None:
    done = leoserve_command("serve", "--help")
    assert done.returncode == 0
    for name in Settings.model_fields:
        assert (flag(name) if name != "model" else "[MODEL]") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND (see leoserve --help)"),
        (["serve", "--prot", "1"], "there is no option --prot; did you mean --port? (see leoserve serve --help)"),
        (["serve", "--model", "leo"], "the model is given without a flag: leoserve serve MODEL (see leoserve serve"),
        (["serve", "--no-log-request"], "there is no option --no-log-request; did you mean --no-log-requests?"),
        (["serve", "--api-key", ""], "--api-key: the key is empty"),
        (
            ["serve", "--pipeline-parallel-size", "2"],
            "--pipeline-parallel-size is another server's option: a model runs on",
        ),
        (
            ["serve", "--kv-cache-dtype=fp8"],
            "--kv-cache-dtype is another server's option: use --kv-dtype (see leoserve",
        ),
        (["serve", "--root-path", "llm"], "--root-path llm: should begin with a slash, like /llm"),
        (["serve", "a", "b"], "b is one too many (see leoserve serve --help)"),
        (["serve", "--port"], "argument --port: expected one argument (see leoserve serve --help)"),
        (["srve"], "argument COMMAND: invalid choice: 'srve'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line(arguments: list[str], message: str) -> None:
    done = leoserve_command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"leoserve: error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_value_out_of_bounds_names_the_flag() -> None:
    assert refusal("--max-num-seqs", "0").startswith("--max-num-seqs 0: should be greater than or equal to 1")


def test_a_folder_that_is_not_there() -> None:
    assert refusal("/no/such/folder").startswith("no such folder: /no/such/folder")


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    message = refusal(str(tmp_path))
    assert message.startswith(f"{tmp_path} is not a complete model folder: missing config.json, weights")


def test_a_hub_id_that_is_not_cached_while_offline() -> None:
    assert "HF_HUB_OFFLINE is set" in refusal("LeoLM/leo-none", HF_HUB_OFFLINE="1")


def test_an_architecture_that_is_not_served_says_which_are(changed: Callable[..., Path]) -> None:
    message = refusal(str(changed(architectures=["GPT2LMHeadModel"], model_type="gpt2")))
    assert "GPT2LMHeadModel" in message
    assert "Llama" in message
    assert "Mistral" in message


def test_weights_that_do_not_match_the_config_name_the_tensor_and_both_shapes(
    checkpoint: Path, changed: Callable[..., Path]
) -> None:
    folder = changed()
    weights = random_weights("7b")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = torch.zeros(3, 5)
    write_weights(folder, weights, "safetensors")
    message = refusal(str(folder))
    assert name in message
    assert re.search(r"3\D+5", message)
    assert re.search(r"512\D+256", message)


def test_too_little_memory_says_what_is_needed_and_what_helps(checkpoint: Path) -> None:
    message = refusal(str(checkpoint), "--kv-cache-memory", "100000")
    assert re.search(r"\d.*G(i)?B", message)
    assert "--kv-cache-memory" in message or "--max-model-len" in message


def test_a_context_beyond_the_model_names_the_flag_and_the_limit(checkpoint: Path) -> None:
    message = refusal(str(checkpoint), "--max-model-len", "100000")
    assert message.startswith("--max-model-len 100000")
    assert "8192" in message


def test_a_port_in_use_says_which_and_what_to_do(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(str(checkpoint), "--port", str(port))
    assert message == f"port {port} on 127.0.0.1 is in use; stop what listens there, or choose another with --port"


def test_an_address_this_machine_has_not(checkpoint: Path) -> None:
    assert refusal(str(checkpoint), "--host", "192.0.2.1").startswith(
        "--host 192.0.2.1: this machine has no such address"
    )


def test_a_template_that_cannot_be_read(checkpoint: Path) -> None:
    assert "chat" in refusal(str(checkpoint), "--chat-template", "{% for message in messages %}")


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    assert refusal("--api-key-file", str(path)) == f"--api-key-file {path}: no such file or directory"


def test_two_servers_that_start_at_once_do_not_share_a_port() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:
            listen(first)
            with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
                listen(second)


@pytest.mark.parametrize(("chat", "route"), [(True, "chat/completions"), (False, "completions")])
def test_the_curl_line_can_be_pasted_whatever_the_model_is_called(chat: bool, route: str) -> None:
    words = shlex.split(curl("http://127.0.0.1:8000/v1", 'Leo\'s "best"', chat=chat, keyed=True))
    assert words[:2] == ["curl", f"http://127.0.0.1:8000/v1/{route}"]
    assert json.loads(words[-1])["model"] == 'Leo\'s "best"'
    assert "Authorization: Bearer $LEOSERVE_API_KEY" in words


def test_what_takes_the_place_of_other_servers_options_exists() -> None:
    ours = {flag(name) for name in Settings.model_fields} | {"--no-log-requests"}
    assert not INSTEAD.keys() & ours
    named = {word.rstrip(".:,;") for text in INSTEAD.values() for word in text.split() if word.startswith("--")}
    assert len(named) > 5
    assert named <= ours
