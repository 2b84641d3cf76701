"""Text to token ids and back, with the tokenizers library and the files of a checkpoint folder.

Control tokens come from the chat template alone: where a user spells one, it stays text. The ids of everything else are
those that the checkpoint's own tokenizer gives.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from leoserve.engine.request import TokenTable
from leoserve.text.control import ControlTokens, is_marker
from leoserve.text.files import TokenizerError, TokenizerFiles, read_files
from leoserve.text.vocabulary import BYTE_TOKEN, UnsupportedDecoder, Vocabulary

if TYPE_CHECKING:
    from leoserve.text.template import RenderedPrompt

__all__ = ["Tokenizer", "TokenizerError"]

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """The tokenizer of one checkpoint; safe to use from several threads.

    bos_id: begins every prompt, or None
    stop_ids: every id that ends an answer
    special_ids: control tokens that are not shown as text
    control_ids: these and added tokens spelled like a control token (<SEP>, [INST]): never made from a user's text
    size: highest id + 1
    id_ranges: [start, stop) of the ids that have a token
    """

    def __init__(self, files: TokenizerFiles) -> None:
        backend = files.backend
        ids = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.bos_id = files.bos_id
        self.named = files.named  # "bos_token" and the like: their spellings
        spelling = {number: token for token, number in ids.items()}
        fallback = {number for number, token in spelling.items() if BYTE_TOKEN.fullmatch(token)}
        special = {number for number, token in added.items() if token.special}
        special.update(ids[token] for token in (*files.named.values(), *CHATML_TOKENS) if token in ids)
        markers = {number for number, token in added.items() if is_marker(token.content)}
        self.special_ids = frozenset(special - fallback)
        self.control_ids = frozenset((special | markers) - fallback)
        # some files list the byte tokens as special: they are text, but must not be spelled either
        self.control = ControlTokens(spelling[number] for number in special | markers)
        self.stop_ids = frozenset(files.eos_ids & spelling.keys())
        if (end_of_turn := ids.get("<|im_end|>")) is not None:
            self.stop_ids |= {end_of_turn}
        self._ids = ids
        self._adds_bos = files.adds_bos
        description = json.loads(backend.to_str())
        try:
            self.vocabulary = Vocabulary(ids, self.special_ids, description["decoder"])
        except UnsupportedDecoder as error:
            raise TokenizerError(f"the tokenizer has a {error}, which leoserve does not know") from error
        self.size = self.vocabulary.size
        self.id_ranges = _ranges(ids.values())
        self._backend = _remembering_nothing(backend)
        self._separator = f"\U000f0000{secrets.token_hex(16)}"  # nobody can guess it, so it is in no text
        own = backend.get_vocab(with_added_tokens=False)
        self._plain = _without_control(description, own, self.control.spellings, self._separator)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json (or convert tokenizer.model) and the configuration beside it. Raises TokenizerError."""
        return cls(read_files(folder))

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary."""
        return self._ids.get(token)

    def spelling(self, token: int) -> str:
        """How the vocabulary spells a token: ▁Haus, <0x0A>; "" for an id without a token."""
        return self._backend.id_to_token(token) or ""

    def encode(self, text: str, *, add_bos: bool = True, control_tokens: bool = False) -> list[int]:
        """Ids of a plain text. BOS is put before it once when `add_bos` and the model has one.

        Control tokens spelled in `text` stay text, unless `control_tokens` says that the text may contain them: then a
        BOS spelled at the beginning counts as the one BOS, whatever `add_bos` says.
        """
        text = _sanitized(text)
        if control_tokens:
            spelled, text = self._split_bos(text)
            return self._with_bos(spelled + _ids(self._backend, text), add_bos)
        return self._with_bos(self._encode_text(text, first=True), add_bos)

    def encode_prompt(self, prompt: RenderedPrompt) -> list[int]:
        """Ids of a rendered chat: the template's control tokens are tokens, the users' are text; BOS once."""
        text = _sanitized(prompt.marked)
        if prompt.mark and prompt.mark in text:
            return self._with_bos(self._encode_marked(text, prompt.mark), True)
        return self._with_bos(_ids(self._backend, text), True)

    def encode_bad_word(self, word: str) -> list[list[int]]:
        """The id sequences that `word` may appear as: inside a text, and as a word of its own after a space."""
        bare = word.lstrip()
        sequences = [_ids(self._bare, _sanitized(text)) for text in (bare, " " + bare)]
        return [ids for number, ids in enumerate(sequences) if ids and ids not in sequences[:number]]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the token adds in the middle of a text; b"" for an id without a token."""
        return self.vocabulary.pieces[token] if 0 <= token < self.size else b""

    def token_text(self, token: int) -> str:
        """The token as OpenAI's log-probabilities show it: its text, or `bytes:\\xNN…` when that is no UTF-8."""
        data = self.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence."""
        pieces = self.vocabulary.shown if skip_special_tokens else self.vocabulary.pieces
        size = self.size
        data = b"".join([pieces[token] for token in ids if 0 <= token < size])
        spaces = len(data) - len(data.lstrip(b" "))
        return data[min(spaces, self.vocabulary.leading_spaces) :].decode(errors=self.vocabulary.invalid_bytes)

    def token_table(self) -> TokenTable:
        """What grammars need to know."""
        return TokenTable(list(self.vocabulary.pieces), sorted(self.special_ids), sorted(self.stop_ids))

    def add_stop_id(self, token: int) -> None:
        """One more id that ends an answer: a chat template's end of turn."""
        self.stop_ids |= {token}

    def _split_bos(self, text: str) -> tuple[list[int], str]:
        """A BOS that is spelled at the beginning as decoders spell it, `<s> Text`, and the text after it.

        The space is the one that the tokenizer puts before a text. As it stands, some tokenizers would put another.
        """
        bos = f"{self.named.get('bos_token')} "
        if self.bos_id is None or not self._doubles_space or not text.startswith(bos):
            return [], text
        return [self.bos_id], text[len(bos) :]

    @cached_property
    def _doubles_space(self) -> bool:
        """Whether a decoded text, encoded again as it stands, has one more space behind its BOS."""
        again = _ids(self._backend, f"{self.named.get('bos_token')} a")
        return self.vocabulary.leading_spaces > 0 and again[1:] != _ids(self._backend, "a")

    def _with_bos(self, ids: list[int], add_bos: bool) -> list[int]:
        if self.bos_id is None:
            return ids
        start = 0
        while start < len(ids) and ids[start] == self.bos_id:
            start += 1
        wanted = start > 0 or (add_bos and self._adds_bos)
        return [self.bos_id, *ids[start:]] if wanted else ids[start:]

    def _encode_marked(self, text: str, mark: str) -> list[int]:
        """Ids of a text with marks.

        The character behind each mark is hidden by the mark itself, so that no control token is found there. The
        stretches between the template's control tokens that had one are then encoded again, whole and as text.
        """
        before, *behind = text.split(mark)
        behind = [part for part in behind if part]
        hidden = iter([part[0] for part in behind])
        masked = mark.join([before, *[part[1:] for part in behind]])
        (encoding,) = self._backend.encode_batch([masked], add_special_tokens=False)
        found = encoding.ids
        ids: list[int] = []
        first, start = 0, 0  # of the stretch: its first token and its first character
        for number in [number for number, token in enumerate(found) if token in self.control_ids]:
            here, after = encoding.token_to_chars(number) or (start, start)
            ids += self._encode_stretch(masked[start:here], found[first:number], mark, hidden, begins=start == 0)
            ids.append(found[number])
            first, start = number + 1, after
        return ids + self._encode_stretch(masked[start:], found[first:], mark, hidden, begins=start == 0)

    def _encode_stretch(
        self, masked: str, ids: list[int], mark: str, hidden: Iterator[str], *, begins: bool
    ) -> list[int]:
        """`ids` where nothing is hidden in the stretch, else the ids of the stretch with its own characters."""
        before, *behind = masked.split(mark)
        if not behind:
            return ids
        restored = before + "".join([character + part for part, character in zip(behind, hidden, strict=False)])
        return self._encode_text(restored, first=begins)

    def _encode_text(self, text: str, *, first: bool) -> list[int]:
        """Ids of a text without control tokens. `first`: it begins the prompt (some tokenizers put a space there)."""
        ids = _ids(self._plain, text) if first else _ids(self._plain, self._separator + text)[1:]
        if self.control_ids.isdisjoint(ids):
            return ids
        spelled = {token: self._spelled(token) for token in self.control_ids.intersection(ids)}
        return [part for token in ids for part in spelled.get(token, (token,))]

    def _spelled(self, token: int) -> list[int]:
        """A control token that merges made from plain text, spelled with smaller tokens."""
        ids: list[int] = []
        for character in self.vocabulary.pieces[token].decode():
            data = character.encode()
            parts = [data] if data in self._smallest else [bytes([byte]) for byte in data]
            ids += [self._smallest[part] for part in parts if part in self._smallest]
        return ids

    @cached_property
    def _smallest(self) -> dict[bytes, int]:
        """Tokens of one character or byte that are no control tokens, by their bytes."""
        pieces = self.vocabulary.pieces
        return {pieces[n]: n for n in self._ids.values() if len(pieces[n]) <= 4 and n not in self.control_ids}

    @cached_property
    def _bare(self) -> tokenizers.Tokenizer:
        """The plain tokenizer without the space that it puts before a text."""
        description = json.loads(self._plain.to_str())
        normalizer = description["normalizer"]
        if normalizer and normalizer["type"] == "Prepend":
            description["normalizer"] = None
        elif normalizer and normalizer["type"] == "Sequence":
            normalizer["normalizers"] = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
        splitter = description["pre_tokenizer"]
        for step in splitter.get("pretokenizers", [splitter]) if splitter else ():
            if step["type"] == "Metaspace":
                step["prepend_scheme"] = "never"
            elif step["type"] == "ByteLevel":
                step["add_prefix_space"] = False
        return _remembering_nothing(tokenizers.Tokenizer.from_str(json.dumps(description)))


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Ids of one text. As a batch of one: the library holds the GIL in `encode`, and lets go of it in a batch."""
    (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _sanitized(text: str) -> str:
    """Lone surrogates, which JSON can spell and UTF-8 cannot, become U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def _ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(ids)):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges


def _without_control(
    description: dict[str, Any], vocabulary: Mapping[str, int], control: frozenset[str], separator: str
) -> tokenizers.Tokenizer:
    """The same tokenizer that finds no control tokens, and one more: `separator`, to stand before a text that does not
    begin the prompt.

    Ids are given in the order of the list, so control tokens outside the model's vocabulary keep their places under
    names that are in no text.
    """
    kept = []
    for token in description["added_tokens"]:
        if token["content"] not in control:
            kept.append(token)
        elif token["content"] not in vocabulary:
            kept.append(token | {"content": f"{separator}{token['id']}", "normalized": False})
    last = max([*vocabulary.values(), *(token["id"] for token in kept)])
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    kept.append({"id": last + 1, "content": separator} | flags)
    plain = json.dumps(description | {"added_tokens": kept, "post_processor": None})
    return _remembering_nothing(tokenizers.Tokenizer.from_str(plain))


def _remembering_nothing(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The library keeps the ids of the last 10,000 words. A tokenizer that does not split texts into words would keep
    whole prompts: 40 MB that are never of use again."""
    if backend.pre_tokenizer is None and hasattr(backend.model, "_resize_cache"):
        backend.model._resize_cache(0)
    return backend
