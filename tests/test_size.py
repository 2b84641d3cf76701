"""leoserve.size: which GPU a model fits, by the arithmetic that the server's own start follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leoserve.model import footprint, published
from leoserve.model.capacity import BLOCK_SIZE, GIB, GPU_MEMORY, TOKENS_PER_STEP
from leoserve.settings import Settings, SettingsError
from leoserve.size import Size, lines, measure, models, named, run
from tests.conftest import PATIENCE

from .checkpoints import write_checkpoint
from .conftest import clean_environment


def sized(model: str | None = None, gpu: str | None = None, **flags: Any) -> tuple[list[Size], list[str]]:
    gpus = GPU_MEMORY if gpu is None else dict([named(gpu)])
    return measure(models(model), gpus, Settings.load(flags))


def one(model: str, gpu: str, **flags: Any) -> Size:
    (size,), failures = sized(model, gpu, **flags)
    assert not failures
    return size


# Parameters as the model cards have them: https://huggingface.co/LeoLM
@pytest.mark.parametrize(
    ("name", "billions", "kib"),
    [("7b", 6.74, 512), ("13b", 13.02, 800), ("70b", 68.98, 320), ("mistral-7b", 7.24, 128)],
)
def test_the_published_networks_are_as_large_as_their_cards_say(name: str, billions: float, kib: int) -> None:
    """`kib`: of the cache that a token takes, in 16 bits."""
    config = published.network(name)
    assert config is not None
    assert footprint.weight_bytes(config, 1) / 1e9 == pytest.approx(billions, abs=0.01)
    assert footprint.block_bytes(config, 1, 2) == kib * 1024


def test_a_model_is_found_by_its_repository_with_and_without_the_owner() -> None:
    for repository, config in published.NETWORKS.items():
        assert published.network(f"LeoLM/{repository}") is published.network(repository) is config
    assert published.network("LeoLM/other") is None


def test_weights_cache_and_what_steps_need_are_all_that_the_share_of_the_gpu_holds() -> None:
    size = one("7b", "h100")
    network = published.NETWORKS["leo-hessianai-7b-chat"]
    assert size.weight_bytes == footprint.weight_bytes(network, 2)
    beside = 0.9 * GPU_MEMORY["h100"] - size.weight_bytes - size.cache_bytes
    assert 2 * GIB < beside < 5 * GIB
    assert size.tokens[0] * footprint.block_bytes(network, 1, 2) == size.cache_bytes
    assert size.at_once[8192][0] == size.tokens[0] // 8192


def test_every_option_that_it_takes_changes_what_fits() -> None:
    usual = one("7b", "80")
    for flags in (
        {"dtype": "float32"},
        {"max_num_batched_tokens": str(2 * TOKENS_PER_STEP)},
        {"gpu_memory_utilization": "0.8"},
        {"max_num_seqs": "3"},
        {"max_model_len": "4096"},
    ):
        assert one("7b", "80", **flags) != usual, flags


def test_8_bits_hold_nearly_twice_the_tokens() -> None:
    plain, eight = one("13b", "h200").tokens
    assert 1.9 < eight / plain < 2


def test_no_more_chats_run_at_once_than_the_server_computes() -> None:
    assert one("mistral-7b", "h200", max_num_seqs="16").at_once[1024] == (16, 16)


def test_what_does_not_fit_says_how_far_it_is_off_and_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    sizes, (sentence,) = sized("LeoLM/leo-mistral-hessianai-7b", "l4")
    assert sizes == []
    assert sentence.startswith("LeoLM/leo-mistral-hessianai-7b does not fit l4: weights of 13.5 GiB leave 3.4 of 22.0")
    fits = int(sentence.rpartition("--max-model-len ")[2].split()[0])
    assert one("mistral-7b", "l4", max_model_len=str(fits)).tokens[0] == fits
    assert sized("mistral-7b", "l4", max_model_len=str(fits + BLOCK_SIZE))[0] == []
    assert run(Settings.load({"model": "70b"}), "h100") == 1
    assert capsys.readouterr().out.startswith("70b does not fit h100: weights of 128.5 GiB")


def test_a_table_has_a_cell_for_every_column() -> None:
    settings = Settings.load({})
    table = [line for line in lines(*sized(), settings) if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) > 15
    assert sum(line.startswith("| 70b |") for line in table) == 1


@pytest.mark.parametrize("gpu", ["", "rtx", "0", "-1", "inf", "nan"])
def test_a_gpu_that_is_none_is_refused_with_those_that_are_known(gpu: str) -> None:
    with pytest.raises(SettingsError, match=rf"^--gpu {gpu}: give the GPU's memory in GiB, or one of l4, "):
        named(gpu)


def test_the_command_knows_folders_variables_and_files_and_refuses_what_is_neither(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "leo", "70b")
    file = tmp_path / "options.yaml"
    file.write_text("max_num_seqs: 2\nkv_dtype: int8\n")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "leoserve", "size", *arguments],
            env=clean_environment(LEOSERVE_CONFIG=str(file)),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    done = command(str(folder), "--gpu", "1.5", "--max-num-batched-tokens", "64")
    assert done.returncode == 1  # what the driver and torch take alone is more
    done = command(str(folder), "--gpu", "16")
    assert done.returncode == 0, done.stderr
    assert "| leo | 16 GiB |" in done.stdout
    assert "| 2 (2) | 2 (2) | 2 (2) |" in done.stdout
    wrong = command("LeoLM/other")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("leoserve: error: MODEL LeoLM/other: give a folder with its config.json, or one of")
    assert wrong.stderr.count("\n") == 1
