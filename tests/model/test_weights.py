"""Both formats load into place without executing anything, in little more memory than the weights."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from leoserve.model.config import ModelConfig
from leoserve.model.llama import Llama
from leoserve.model.weights import WeightsError, find_files, load_weights
from tests.checkpoints import Format, config_dict, random_weights, write_checkpoint, write_weights

FORMATS: tuple[Format, ...] = ("safetensors", "safetensors-sharded", "bin", "bin-sharded")
CPU = torch.device("cpu")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    config = ModelConfig.from_folder(folder)
    model = Llama(config, dtype=dtype, device=CPU)
    load_weights(model, folder, config, progress=None)
    return model.destinations()


def refused(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        loaded(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def only_config(folder: Path, shape: str = "7b", **change: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_dict(shape) | change))
    return folder


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", ["7b", "70b", "mistral"])
def test_every_tensor_lands_in_its_place(tmp_path: Path, shape: str, fmt: Format) -> None:
    found = loaded(write_checkpoint(tmp_path, shape, fmt=fmt))
    expected = random_weights(shape)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("fmt", ["safetensors", "bin"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_are_cast_on_the_way(tmp_path: Path, fmt: Format, stored: torch.dtype, wanted: torch.dtype) -> None:
    found = loaded(write_checkpoint(tmp_path, "7b", fmt=fmt, dtype=stored), wanted)
    for name, tensor in random_weights("7b", dtype=stored).items():
        assert found[name].dtype is wanted
        assert torch.equal(found[name], tensor.to(wanted)), name


@pytest.mark.parametrize("fmt", ["safetensors-sharded", "bin-sharded"])
def test_shards_without_an_index_are_found(tmp_path: Path, fmt: Format) -> None:
    write_weights(only_config(tmp_path), random_weights("7b"), fmt, shards=3, index=False)
    assert torch.equal(loaded(tmp_path)["lm_head.weight"], random_weights("7b")["lm_head.weight"])


def test_a_missing_shard_is_said(tmp_path: Path) -> None:
    write_weights(only_config(tmp_path), random_weights("7b"), "bin-sharded", shards=3, index=False)
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    assert "2 of 3 shards" in refused(tmp_path)


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "7b", fmt="bin-sharded")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin" in refused(tmp_path)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "7b", fmt="bin-sharded")
    write_weights(tmp_path, random_weights("7b"), "safetensors")
    assert find_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    message = refused(only_config(tmp_path))
    assert "model.safetensors" in message
    assert "pytorch_model.bin" in message


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", 7])
def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path, name: object) -> None:
    (only_config(tmp_path) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "index.json" in refused(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    (only_config(tmp_path) / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(tmp_path)


@pytest.mark.parametrize("fmt", ["safetensors", "bin"])
def test_a_wrong_shape_names_the_tensor_and_both_shapes(tmp_path: Path, fmt: Format) -> None:
    weights = random_weights("7b")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(500, 256)
    write_weights(only_config(tmp_path), weights, fmt)
    message = refused(tmp_path)
    assert all(part in message for part in ("model.layers.1.mlp.up_proj.weight", "500×256", "512×256")), message


@pytest.mark.parametrize("fmt", ["safetensors", "bin"])
def test_a_missing_tensor_is_named(tmp_path: Path, fmt: Format) -> None:
    weights = random_weights("7b")
    del weights["model.layers.0.self_attn.k_proj.weight"]
    write_weights(only_config(tmp_path), weights, fmt)
    assert "model.layers.0.self_attn.k_proj.weight" in refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "model.norm.qweight"]
)
def test_a_tensor_without_a_place_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_weights(only_config(tmp_path), random_weights("7b") | {name: torch.zeros(4)}, "safetensors")
    assert name in refused(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    write_weights(only_config(tmp_path), random_weights("7b"), "safetensors-sharded")
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.zeros(512, 256)}, second)
    assert "model.embed_tokens.weight" in refused(tmp_path)


@pytest.mark.parametrize("also_stored", [False, True])
def test_a_tied_head_is_the_embedding(tmp_path: Path, also_stored: bool) -> None:
    weights = random_weights("7b")
    head = weights.pop("lm_head.weight")
    if also_stored:
        weights["lm_head.weight"] = head
    write_weights(only_config(tmp_path, tie_word_embeddings=True), weights, "safetensors")
    config = ModelConfig.from_folder(tmp_path)
    model = Llama(config, dtype=torch.float32, device=CPU)
    load_weights(model, tmp_path, config, progress=None)
    model.prepare()
    hidden = torch.randn(4, 256)
    expected = hidden @ weights["model.embed_tokens.weight"].T
    torch.testing.assert_close(model.logits(hidden), expected, atol=1e-4, rtol=1e-4)


def test_progress_runs_up_to_all_bytes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "7b", fmt="bin-sharded", dtype=torch.float16)
    config = ModelConfig.from_folder(tmp_path)
    model = Llama(config, dtype=torch.float32, device=CPU)
    seen: list[tuple[int, int]] = []
    size = load_weights(model, tmp_path, config, progress=lambda done, total: seen.append((done, total)))
    assert size == sum(tensor.nbytes for tensor in random_weights("7b").values())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == max(total for _, total in seen)


class Attack:
    """A pickle that would run code when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path) -> None:
    weights: dict[str, Any] = dict(random_weights("7b"))
    weights["model.norm.weight"] = Attack(tmp_path / "executed")
    torch.save(weights, only_config(tmp_path) / "pytorch_model.bin")
    message = refused(tmp_path)
    assert "pytorch_model.bin is refused" in message
    assert "system" in message
    assert not (tmp_path / "executed").exists()


def test_a_bare_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    (only_config(tmp_path) / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(tmp_path / "executed")))
    assert "pytorch_model.bin" in refused(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_torchs_old_pickle_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    file = only_config(tmp_path) / "pytorch_model.bin"
    torch.save(random_weights("7b"), file, _use_new_zipfile_serialization=False)
    assert "convert" in refused(tmp_path)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"a": 1}, {"a": {"b": torch.zeros(1)}}, {"a": torch.zeros(1).int()}]
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, only_config(tmp_path) / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, 100_000])
@pytest.mark.parametrize("fmt", ["safetensors", "bin"])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, fmt: Format, keep: int) -> None:
    write_checkpoint(tmp_path, "7b", fmt=fmt)
    file = find_files(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:keep])
    assert file.name in refused(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [256], "data_offsets": [0, 10**9]},
        {"dtype": "F32", "shape": [256], "data_offsets": [-4, 1020]},
        {"dtype": "F32", "shape": [255], "data_offsets": [0, 1024]},
        {"dtype": "I32", "shape": [256], "data_offsets": [0, 1024]},
        {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 1024]},
        {"dtype": "F32", "shape": [256]},
        17,
    ],
)
def test_a_header_that_points_anywhere_is_refused(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"model.norm.weight": entry}).encode()
    file = only_config(tmp_path) / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2048))
    assert "model.norm.weight" in refused(tmp_path)


def test_unaligned_tensors_are_read_right(tmp_path: Path) -> None:
    weights = random_weights("7b")
    write_weights(only_config(tmp_path), weights, "safetensors")
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :])
    found = loaded(tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


MEASURE = """
import sys
from pathlib import Path
import torch
from leoserve.model.config import ModelConfig
from leoserve.model.llama import Llama
from leoserve.model.weights import load_weights

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

torch.set_num_threads(1)
folder = Path(sys.argv[1])
config = ModelConfig.from_folder(folder)
warm = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(64, 64, dtype=torch.bfloat16))
before = status("VmRSS")
model = Llama(config, dtype=torch.bfloat16, device=torch.device("cpu"))
size = load_weights(model, folder, config, progress=None)
model.prepare()
print(size, status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("fmt", FORMATS)
def test_peak_memory_is_the_weights_and_little_more(tmp_path: Path, fmt: Format) -> None:
    change = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8}
    only_config(tmp_path, "7b", **change, num_key_value_heads=8, vocab_size=16384)
    shapes = Llama(ModelConfig.from_folder(tmp_path), dtype=torch.bfloat16, device=torch.device("meta")).destinations()
    weights = {name: torch.ones(tensor.shape, dtype=torch.float16) for name, tensor in shapes.items()}
    write_weights(tmp_path, weights, fmt)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    size, peak = map(int, run.stdout.split())
    assert size > 300e6
    assert peak < size + 100e6, f"{(peak - size) / 1e6:.0f} MB more than the weights"
