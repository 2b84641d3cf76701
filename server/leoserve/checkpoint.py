"""Where the model's files are: a folder as it stands, or a hub repository that is downloaded to the hub's cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TOKEN = "set HF_TOKEN, or HF_TOKEN_PATH to a file that has it"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class CheckpointError(Exception):
    """The model's files cannot be had: one line that says what to do."""


def resolve(model: str, *, revision: str | None, cache: Path | None, token: str | None) -> Path:
    """The folder of `model`, a path or a hub id. A path that exists is never taken for a hub id.

    Raises CheckpointError.
    """
    path = Path(model).expanduser()
    if path.is_file():
        raise CheckpointError(f"{model} is a file; give the model's folder")
    if path.is_dir():
        folder = path
    elif HUB_ID.fullmatch(model):
        folder = download(model, revision=revision, cache=cache, token=token)
    else:
        raise CheckpointError(f"no such folder: {model} (a hub id looks like LeoLM/leo-hessianai-7b-chat)")
    if lacking := missing(folder):
        raise CheckpointError(f"{model} is not a complete model folder: missing {', '.join(lacking)}")
    return folder


def missing(folder: Path) -> list[str]:
    """What a model folder needs and this one has not."""
    names = {entry.name for entry in folder.iterdir()}
    lacking = [] if "config.json" in names else ["config.json"]
    weights = wanted_weights(names)
    if not weights:
        lacking.append("weights (*.safetensors or pytorch_model*.bin)")
    lacking += sorted(shards(folder, weights) - names)
    if not {"tokenizer.json", "tokenizer.model"} & names:
        lacking.append("a tokenizer (tokenizer.json or tokenizer.model)")
    return lacking


def wanted_weights(names: Iterable[str]) -> set[str]:
    """Of a checkpoint's files the weights and their index: safetensors when there are any, else PyTorch's."""
    names = set(names)
    for pattern in (
        r"model.*\.safetensors(\.index\.json)?",
        r".*\.safetensors",
        r"pytorch_model.*\.bin(\.index\.json)?",
    ):
        found = {name for name in names if re.fullmatch(pattern, name)}
        if any(not name.endswith(".json") for name in found):
            return found
    return set()


def shards(folder: Path, weights: set[str]) -> set[str]:
    """The weight files that the index among `weights` names."""
    for name in INDEXES:
        if name in weights:
            try:
                return set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError):
                raise CheckpointError(f"{folder / name} is no index of weights; download it again") from None
    return set()


def wanted(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that serving needs: no second copy of the weights, no code, no pictures."""
    top = {name for name in names if "/" not in name}
    indexes = {name for name in top if name.endswith(".index.json")}
    small = {name for name in top if name.endswith((".json", ".jinja")) or name == "tokenizer.model"} - indexes
    return sorted(small | wanted_weights(top))


def download(repository: str, *, revision: str | None, cache: Path | None, token: str | None) -> Path:
    """The needed files of a hub repository, from the cache or the hub. Without a network the cache alone is asked.

    Raises CheckpointError.
    """
    from httpx2 import TransportError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        info = HfApi(token=token).model_info(repository, revision=revision, timeout=20)
        names = wanted(file.rfilename for file in info.siblings or [])
        if not wanted_weights(names):
            raise CheckpointError(
                f"hub repository {repository} has no weights that leoserve reads (*.safetensors, pytorch_model*.bin)"
            )
        folder = snapshot_download(repository, revision=revision, cache_dir=cache, token=token, allow_patterns=names)
    except HfHubHTTPError as error:
        raise CheckpointError(refusal(repository, revision, error)) from None
    except OfflineModeIsEnabled:
        return cached(repository, revision, cache, "HF_HUB_OFFLINE is set")
    except (TransportError, LocalEntryNotFoundError):
        return cached(repository, revision, cache, "the hub cannot be reached")
    except OSError as error:
        raise CheckpointError(f"downloading {repository}: {error}") from None
    return Path(folder)


def cached(repository: str, revision: str | None, cache: Path | None, why: str) -> Path:
    """The repository's folder in the cache, for when the hub is out of reach. Raises CheckpointError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, cache_dir=cache, local_files_only=True))
    except IncompleteSnapshotError as error:  # of *all* files in the repository; `resolve` asks for the needed ones
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"there is no folder {repository}, and it is not in the hub cache; {why}, so it cannot be downloaded"
        ) from None


def refusal(repository: str, revision: str | None, error: HfHubHTTPError) -> str:
    """What the hub's answer means for the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"hub repository {repository} is gated: accept its terms on its page, then {TOKEN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no folder and no hub repository {repository} (if it is private, {TOKEN})"
    if isinstance(error, RevisionNotFoundError):
        return f"hub repository {repository} has no revision {revision}"
    return f"the hub answered {error.response.status_code} for {repository}; try again, or give a folder"
