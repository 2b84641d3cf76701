"""The files of a checkpoint folder that say how it reads and writes text.

tokenizer.json is the truth: its normalizer and pre-tokenizer are used as they are, also where transformers 5 builds
others for the class that tokenizer_config.json names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tokenizers

from leoserve.text.control import is_marker

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says what to do, in one line."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files say.

    named: the spellings of bos_token, eos_token and the like
    eos_ids: every end that any file names; an id may have no token
    adds_bos: whether a prompt begins with the BOS token
    """

    backend: tokenizers.Tokenizer
    named: dict[str, str]
    bos_id: int | None
    eos_ids: frozenset[int]
    adds_bos: bool


def read_files(folder: Path) -> TokenizerFiles:
    """Read the tokenizer of a checkpoint folder. Raises TokenizerError."""
    settings = read_json(folder / "tokenizer_config.json")
    special_map = read_json(folder / "special_tokens_map.json")
    backend = _backend(folder, settings)
    named = {name: token for name in NAMED if (token := _spelling(settings.get(name) or special_map.get(name)))}
    _add_tokens(backend, folder, settings, {*named.values(), *_spellings(settings), *_spellings(special_map)})
    _find_as_spelled(backend)
    named = {name: token for name, token in named.items() if backend.token_to_id(token) is not None}
    config, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    bos_id = backend.token_to_id(named["bos_token"]) if "bos_token" in named else None
    if bos_id is None and isinstance(number := config.get("bos_token_id"), int) and backend.id_to_token(number):
        bos_id = number
    eos_ids = {backend.token_to_id(named["eos_token"])} if "eos_token" in named else set()
    for source in (config, generation):
        ends = source.get("eos_token_id")
        eos_ids.update(ends if isinstance(ends, list) else [] if ends is None else [ends])
    return TokenizerFiles(
        backend=backend,
        named=named,
        bos_id=bos_id,
        eos_ids=frozenset(number for number in eos_ids if isinstance(number, int)),
        adds_bos=_adds_bos(backend, settings, bos_id),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file. Raises TokenizerError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds no JSON object")
    return content


def _backend(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").exists():
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"{folder / 'tokenizer.json'} cannot be loaded: {error}") from error
    elif (folder / "tokenizer.model").exists():
        backend = _converted(folder, settings)
    else:
        raise TokenizerError(f"{folder} has neither tokenizer.json nor tokenizer.model: copy one from the model's page")
    backend.no_truncation()
    backend.no_padding()
    return backend


def _converted(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a sentencepiece file, by transformers: an import of seconds, only where it is needed.

    Unless the settings say `legacy: false`, a space goes before every stretch of text, as sentencepiece itself and
    Llama 2's own tokenizer.json do it; transformers 5 would leave it out after a control token.
    """
    try:
        for package in ("sentencepiece", "google.protobuf"):  # without them transformers fails less clearly
            import_module(package)
        from transformers import LlamaTokenizerFast
    except ImportError as error:
        raise TokenizerError(
            f"{folder} has only tokenizer.model, and converting it needs more packages ({error}): "
            "pip install transformers sentencepiece protobuf, or save a tokenizer.json into the folder"
        ) from error
    try:
        converted = LlamaTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever the conversion meets in a file of unknown origin
        raise TokenizerError(f"{folder / 'tokenizer.model'} cannot be converted: {error}") from error
    description = json.loads(converted.backend_tokenizer.to_str())
    if settings.get("legacy") is not False:
        prefix, spaces = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}}
        normalizers = [prefix, spaces | {"content": "▁"}]
        description |= {"normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None}
    return tokenizers.Tokenizer.from_str(json.dumps(description))


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any], special: set[str]) -> None:
    """Tokens that other files know and tokenizer.json does not, or not so, as transformers adds them."""
    wanted: dict[int, tokenizers.AddedToken] = {}
    for spelling, number in read_json(folder / "added_tokens.json").items():
        wanted[int(number)] = tokenizers.AddedToken(spelling, special=spelling in special, normalized=False)
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    wanted = {number: known.get(token.content, token) for number, token in wanted.items()}
    for number, token in settings.get("added_tokens_decoder", {}).items():
        flags = {key: bool(token.get(key)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        wanted[int(number)] = tokenizers.AddedToken(token["content"], **flags)
    new = [token for _, token in sorted(wanted.items()) if repr(known.get(token.content)) != repr(token)]
    backend.add_tokens(new)
    for number, token in wanted.items():
        if backend.token_to_id(token.content) != number:
            raise TokenizerError(
                f"{folder}: the token {token.content} has the id {backend.token_to_id(token.content)} in the tokenizer "
                f"and {number} in added_tokens: take all tokenizer files from one place"
            )


def _find_as_spelled(backend: tokenizers.Tokenizer) -> None:
    """Look for control tokens in the text as it is written, before any normalizing.

    Some old files say otherwise, and then a normalizer that puts ▁ before a text hides the template's own tokens.
    """
    hidden = []
    for token in backend.get_added_tokens_decoder().values():
        if token.normalized and (token.special or is_marker(token.content)):
            flags = {key: getattr(token, key) for key in ("lstrip", "rstrip", "single_word", "special")}
            hidden.append(tokenizers.AddedToken(token.content, normalized=False, **flags))
    backend.add_tokens(hidden)


def _spellings(settings: dict[str, Any]) -> Iterator[str]:
    for token in settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or ():
        if spelling := _spelling(token):
            yield spelling


def _spelling(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _adds_bos(backend: tokenizers.Tokenizer, settings: dict[str, Any], bos_id: int | None) -> bool:
    """Whether prompts begin with BOS: as the settings say; else as the tokenizer does; the Llama family always."""
    if bos_id is None:
        return False
    if isinstance(explicit := settings.get("add_bos_token"), bool):
        return explicit
    return backend.encode("").ids[:1] == [bos_id] or backend.token_to_id("<0x00>") is not None
