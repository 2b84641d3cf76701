"""What is served, and where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from leoserve.settings.option import option


class ModelOptions(BaseModel):
    model: str | None = option(
        None,
        "Model",
        "What to serve: a folder, or a hub id such as LeoLM/leo-hessianai-7b-chat, which is downloaded and cached.",
        unset="the bundled demo model",
        metavar="MODEL",
    )
    revision: str | None = option(
        None,
        "Model",
        "Branch, tag or commit of the hub repository. Set a commit to serve the same weights for ever.",
        unset="the repository's main branch",
    )
    hf_token: str | None = option(
        None,
        "Model",
        "Access token for gated or private hub repositories. Prefer the variable: flags show in process lists.",
        unset="HF_TOKEN or the login of `hf auth login`",
        secret=True,
    )
    download_dir: Path | None = option(
        None,
        "Model",
        "Folder of the hub cache. Change it when the home folder is small or not shared between machines.",
        unset="HF_HOME's cache",
        metavar="DIR",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Model", "Where the network runs; auto takes a GPU when there is one. Set cpu to leave a GPU alone."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto",
        "Model",
        "Type of weights and cache; auto follows the checkpoint and the device. float32 doubles the memory and is for "
        "comparing numbers.",
    )
    max_model_len: int | None = option(
        None,
        "Model",
        "Longest prompt and answer together. Lower it when memory holds too few blocks for one full context.",
        unit="tokens",
        unset="the checkpoint's context length",
        ge=1,
    )
    chat_template: str | None = option(
        None,
        "Model",
        "Jinja chat template, a file or the template itself. Needed where the checkpoint has none and its tokenizer "
        "has no ChatML tokens.",
        unset="the checkpoint's own, else ChatML",
        metavar="FILE|TEMPLATE",
    )
