from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve import demo
from leoserve.text.template import ChatTemplate, RenderedPrompt
from leoserve.text.tokenizer import Tokenizer
from tests.text.conftest import BYTES, sentencepiece_like, write_checkpoint

LETTERS = "  abcdeimnrstuzßäöüÄ.,;:!?\n|_/>€😀日é"
ORDINARY = st.text(alphabet=st.sampled_from(LETTERS + "▁"), max_size=40)
PIECES = ("<|im_", "end|>", "<", ">", "s", "<<s>", "|im_end|>", "<0x41>", "\uf8ff")
CONTROL = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<SEP>")
HOSTILE = st.lists(st.one_of(st.text(LETTERS, max_size=9), st.sampled_from(CONTROL + PIECES)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def template(folder: Path, ours: Tokenizer) -> ChatTemplate:
    return ChatTemplate.load(folder, None, ours)


@pytest.fixture(scope="module")
def truth(folder: Path) -> Any:
    """transformers' tokenizer of the same folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def chat(*contents: str) -> list[dict[str, Any]]:
    roles = ["system", *(["user", "assistant"] * len(contents))]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def prompt_ids(tokenizer: Tokenizer, template: ChatTemplate, messages: list[dict[str, Any]]) -> list[int]:
    rendered = template.render(messages, add_generation_prompt=True, continue_final_message=False, extra={})
    return tokenizer.encode_prompt(rendered)


def without_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return ids[1:] if ids[:1] == [tokenizer.bos_id] else ids


@settings(max_examples=150, deadline=None)
@given(contents=st.lists(ORDINARY, min_size=1, max_size=4))
def test_a_chat_has_the_ids_that_transformers_gives(
    ours: Tokenizer, template: ChatTemplate, truth: Any, contents: list[str]
) -> None:
    messages = chat(*contents)
    expected = truth.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = prompt_ids(ours, template, messages)
    assert without_bos(ours, ids) == expected
    assert ids.count(ours.bos_id) == int(ours.vocabulary.byte_fallback)


@settings(max_examples=150, deadline=None)
@given(text=ORDINARY)
def test_a_plain_text_has_the_ids_that_transformers_gives(ours: Tokenizer, truth: Any, text: str) -> None:
    assert ours.encode(text, add_bos=False) == truth.encode(text, add_special_tokens=False)
    if ours.vocabulary.byte_fallback:
        assert ours.encode(text) == truth.encode(text)


@settings(max_examples=300, deadline=None)
@given(contents=st.lists(HOSTILE, min_size=1, max_size=4))
def test_control_tokens_in_a_message_stay_text(ours: Tokenizer, template: ChatTemplate, contents: list[str]) -> None:
    messages = chat(*contents)
    ids = prompt_ids(ours, template, messages)
    turn = [ours.token_id("<|im_start|>"), ours.token_id("<|im_end|>")]
    control = [token for token in without_bos(ours, ids) if token in ours.control_ids]
    assert control == turn * len(messages) + turn[:1]
    assert contents_of(ours, ids, turn) == [f"{message['role']}\n{message['content']}" for message in messages]


def contents_of(tokenizer: Tokenizer, ids: list[int], turn: list[int | None]) -> list[str]:
    """What stands between the control tokens of each turn, as the model reads it."""
    contents = []
    while turn[1] in ids:
        end = ids.index(turn[1])  # type: ignore[arg-type]
        contents.append(text_of(tokenizer, ids[ids.index(turn[0]) + 1 : end]))  # type: ignore[arg-type]
        ids = ids[end + 1 :]
    return contents


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    data = b"".join(map(tokenizer.token_bytes, ids))
    legacy = tokenizer.encode("a", add_bos=False)[:1] != tokenizer.encode_bad_word("a")[0][:1]
    mid_text = tokenizer.encode("<|im_end|>a", add_bos=False, control_tokens=True)[1:]
    puts_space = legacy and b"".join(map(tokenizer.token_bytes, mid_text)).startswith(b" ")
    return data.decode()[int(puts_space and bool(data)) :]


@settings(max_examples=200, deadline=None)
@given(text=HOSTILE)
def test_control_tokens_in_a_plain_text_stay_text(ours: Tokenizer, text: str) -> None:
    ids = ours.encode("x" + text, add_bos=False)
    assert ours.control_ids.isdisjoint(ids)
    assert ours.decode(ids, skip_special_tokens=False) == "x" + text


def test_a_message_reads_the_same_around_a_control_token(ours: Tokenizer, template: ChatTemplate) -> None:
    """What is spelled changes nothing in the stretch before it and after the turn."""
    ids = prompt_ids(ours, template, chat("Guten Tag", "Was heißt <|im_end|>?", "Ende."))
    plain = prompt_ids(ours, template, chat("Guten Tag", "Was heißt das?", "Ende."))
    end = ours.token_id("<|im_end|>")
    assert ids[: ids.index(end)] == plain[: plain.index(end)]  # type: ignore[arg-type]
    assert ids[::-1][: ids[::-1].index(end) + 8] == plain[::-1][: plain[::-1].index(end) + 8]  # type: ignore[arg-type]


def test_an_added_word_in_a_message_is_its_token_and_a_marker_is_not(ours: Tokenizer, template: ChatTemplate) -> None:
    ids = prompt_ids(ours, template, chat("Donaudampfschiff <SEP>"))
    assert ours.token_id("Donaudampfschiff") in ids
    assert ours.token_id("<SEP>") not in ids
    assert ours.token_id("<SEP>") in ours.encode_prompt(RenderedPrompt("a<SEP>"))


@pytest.mark.parametrize("source", ["{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"])
@pytest.mark.parametrize("content", ["Hallo", "<s>Hallo", "<s>"])
def test_bos_comes_once_whoever_writes_it(folders: dict[str, Path], source: str, content: str) -> None:
    for kind in ("llama2", "metaspace"):
        tokenizer = Tokenizer.load(folders[kind])
        template = ChatTemplate.load(folders[kind], source, tokenizer)
        ids = prompt_ids(tokenizer, template, chat(content))
        assert ids[0] == tokenizer.bos_id
        assert ids.count(tokenizer.bos_id) == 1
        assert tokenizer.encode(content).count(tokenizer.bos_id) == 1
        assert tokenizer.encode(content, control_tokens=True).count(tokenizer.bos_id) == 1


@settings(max_examples=100, deadline=None)
@given(text=ORDINARY)
def test_a_text_that_a_decoder_wrote_with_its_bos_is_read_back(ours: Tokenizer, truth: Any, text: str) -> None:
    if not ours.vocabulary.byte_fallback:
        return
    ids = ours.encode(text)
    assert ours.encode(truth.decode(ids), control_tokens=True) == ids
    assert ours.encode(truth.decode(ids), control_tokens=True, add_bos=False) == ids, "a BOS that is written is meant"


def test_bos_is_left_out_when_the_files_say_so(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, sentencepiece_like(legacy=True), add_bos_token=False)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_id not in tokenizer.encode("Hallo")
    assert tokenizer.encode_prompt(RenderedPrompt("<s>Hallo"))[0] == tokenizer.bos_id


def test_token_bytes_and_text_are_those_of_the_token(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(folders["llama2"])
    for byte, token in enumerate(BYTES):
        assert tokenizer.token_bytes(tokenizer.token_id(token) or 0) == bytes([byte])
    assert tokenizer.token_text(tokenizer.token_id("<0xF0>") or 0) == "bytes:\\xf0"
    assert tokenizer.token_text(tokenizer.token_id("▁und") or 0) == " und"
    assert tokenizer.token_text(tokenizer.token_id("<|im_end|>") or 0) == "<|im_end|>"
    level = Tokenizer.load(folders["byte_level"])
    assert b"".join(map(level.token_bytes, level.encode("Grüße 😀", add_bos=False))) == "Grüße 😀".encode()


def test_a_bad_word_is_banned_inside_a_text_and_after_a_space(ours: Tokenizer) -> None:
    sequences = ours.encode_bad_word("Zug")
    texts = [b"".join(map(ours.token_bytes, sequence)) for sequence in sequences]
    assert texts == [b"Zug", b" Zug"]


def test_a_lone_surrogate_is_replaced(ours: Tokenizer) -> None:
    assert ours.decode(ours.encode("a\ud800b")) == "a\ufffdb"


def test_threads_share_one_tokenizer(ours: Tokenizer, template: ChatTemplate) -> None:
    chats = [chat(f"Nummer {number} <|im_end|> äöü") for number in range(40)]
    expected = [prompt_ids(ours, template, messages) for messages in chats]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda messages: prompt_ids(ours, template, messages), chats)) == expected


def test_a_vocabulary_that_spells_control_tokens_by_merges_still_does_not_make_them(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(legacy=True)
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    vocabulary["<s"] = len(vocabulary)
    for token in description["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    description["model"]["merges"] = [["<", "s"], ["<s", ">"], *description["model"]["merges"]]
    folder = write_checkpoint(tmp_path, type(tokenizer).from_str(json.dumps(description)))
    ours = Tokenizer.load(folder)
    assert ours.bos_id in ours._plain.encode("a<s>", add_special_tokens=False).ids  # the merge does what is feared
    ids = ours.encode("a<s>", add_bos=False)
    assert ours.bos_id not in ids
    assert ours.decode(ids) == "a<s>"


def test_loading_imports_neither_torch_nor_transformers(folders: dict[str, Path]) -> None:
    script = (
        "import sys; from pathlib import Path; from leoserve.text import detokenize, stop, template, tokenizer;"
        f"tokenizer.Tokenizer.load(Path({str(folders['llama2'])!r})).encode('a');"
        "print([name for name in ('torch', 'transformers', 'sentencepiece') if name in sys.modules])"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"


def test_other_threads_run_while_a_long_text_is_encoded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_checkpoint(tmp_path, sentencepiece_like(legacy=True)))
    text = "Über die alte Brücke fahren morgens viele Menschen. " * 30_000
    ticks, done = [0], threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks[0] += 1

    ticking = threading.Thread(target=tick)
    ticking.start()
    before = ticks[0]
    tokenizer.encode(text)
    during = ticks[0] - before
    done.set()
    ticking.join()
    assert during >= 10  # with the GIL held throughout, one or two around the call


def test_prompts_are_not_kept() -> None:
    """The library would keep each of them for its cache of words: 3 to 4 KB a prompt, up to 10,000 prompts."""
    tokenizer, process, count = Tokenizer.load(demo.model_path()), psutil.Process(), 3000
    for number in range(2 * count):
        if number == count:
            before = process.memory_info().rss
        tokenizer.encode(f"Das Haus am Fluss, die Straße und der Garten hinter der Brücke, Nummer {number} und mehr")
    assert process.memory_info().rss - before < 1000 * count
