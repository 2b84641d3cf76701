"""What is asked: the same for the same seed, of the lengths that were asked for, and honest about what is shared."""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from leobench import workloads
from leobench.workloads import ESTIMATED, BadTrace, Form, Planned, Words, answer_name, sessions
from leobench.workloads.bundled import chats, documents
from leobench.workloads.warmup import WarmUp

NAMES = ["random", "chat", "conversations", "documents"]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    workloads.add_arguments(parser)
    return parser.parse_args(words)


def first(count: int, *words: str, form: Form = "chat", with_words: Words = ESTIMATED) -> list[Planned]:
    return list(islice(workloads.from_options(options(*words), form, with_words).requests(), count))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["chat", "completions"])
def test_the_seed_decides_everything(name: str, form: Form) -> None:
    words = ("--workload", name, "--output-tokens", "lognormal:50:0.5")
    assert first(60, *words, form=form) == first(60, *words, form=form)
    assert first(60, *words, form=form) != first(60, *words, "--seed", "2", form=form)


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_the_same_whether_or_not_texts_are_made(name: str) -> None:
    words = ("--workload", name, "--output-tokens", "uniform:5:90", "--think", "lognormal:2:0.5")
    without = first(60, *words, form="none")
    assert all(planned.prompt == "" for planned in without)
    for bare, planned in zip(without, first(60, *words), strict=True):
        assert (bare.prompt_tokens, bare.output_tokens, bare.after) == (
            planned.prompt_tokens,
            planned.output_tokens,
            planned.after,
        )
        assert (bare.session, bare.turn, bare.prefix) == (planned.session, planned.turn, planned.prefix)


@pytest.mark.parametrize(
    ("text", "low", "high", "median"),
    [("128", 128, 128, 128), ("uniform:64:256", 64, 256, 160), ("lognormal:200:0.8", 8, 4910, 200)],
)
def test_lengths_are_distributed_as_asked(text: str, low: int, high: int, median: float) -> None:
    lengths = np.array(
        [planned.prompt_tokens for planned in first(4000, "--workload", "random", "--input-tokens", text, form="none")]
    )
    assert low <= lengths.min() <= lengths.max() <= high
    assert np.median(lengths) == pytest.approx(median, rel=0.05)
    if text.startswith("lognormal"):
        assert np.log(lengths).std() == pytest.approx(0.8, rel=0.05)


def test_completions_get_exactly_so_many_token_ids() -> None:
    for planned in first(50, "--workload", "random", "--input-tokens", "uniform:1:300", form="completions"):
        assert isinstance(planned.prompt, list)
        assert len(planned.prompt) == planned.prompt_tokens
        assert set(map(type, planned.prompt)) == {int}


def test_made_up_texts_cost_what_was_asked_by_the_words_own_costs() -> None:
    costs = {word: 1 + place % 3 for place, word in enumerate(ESTIMATED.words)}
    known = Words(list(costs), list(costs.values()), around=5, exact=True)
    for planned in first(100, "--workload", "random", "--input-tokens", "uniform:6:200", with_words=known):
        (message,) = planned.prompt
        assert isinstance(message, dict)
        assert sum(costs[word] for word in message["content"].split()) + 5 == planned.prompt_tokens


def test_the_bundled_prompts_are_many_and_various() -> None:
    lengths = np.array([len(chat.prompt) for chat in chats()])
    assert len({chat.prompt for chat in chats()}) == len(chats()) >= 200
    assert len({chat.topic for chat in chats()}) >= 10
    assert lengths.min() < 25 < 50 < np.median(lengths) < 100 < 800 < lengths.max()
    assert len(documents()) >= 3
    assert all(len(document.text) > 5000 and len(document.questions) >= 5 for document in documents())


def test_chats_share_no_beginning_and_take_every_prompt_in_turn() -> None:
    count = len(chats())
    asked = [planned.prompt[0]["content"] for planned in first(2 * count, "--workload", "chat")]
    openings = {text.partition(": ")[0] for text in asked}
    assert len(openings) == 2 * count
    questions = [text.partition(": ")[2] for text in asked]
    assert sorted(questions[:count]) == sorted(questions[count:]) == sorted(chat.prompt for chat in chats())
    assert questions[:count] != questions[count:]
    assert not any(planned.prefix for planned in first(50, "--workload", "chat"))


def test_a_conversation_says_only_what_is_new_and_counts_all_that_was_said() -> None:
    words = ("--workload", "conversations", "--turns", "3", "--input-tokens", "20", "--output-tokens", "30")
    found = list(sessions(first(9, *words, "--system-tokens", "40", "--think", "5")))
    assert [[(planned.session, planned.turn) for planned in turns] for turns in found] == [
        [(session, turn) for turn in range(3)] for session in range(3)
    ]
    around = ESTIMATED.around
    for turns in found:
        assert [message["role"] for message in turns[0].prompt] == ["system", "user"]
        assert [message["role"] for message in turns[1].prompt] == ["user"]
        assert [planned.prompt_tokens for planned in turns] == [
            40 + (20 + around) * (turn + 1) + 30 * turn for turn in range(3)
        ]
        assert [planned.after for planned in turns] == [0.0, 5.0, 5.0]
    last = found[1][2]
    assert [name for name, _ in last.prefix] == [
        "system",
        "conversation/1/0/user",
        answer_name(1, 0),
        "conversation/1/1/user",
        answer_name(1, 1),
        "conversation/1/2/user",
    ]
    assert sum(tokens for _, tokens in last.prefix) == last.prompt_tokens


def test_documents_are_the_asked_share_of_the_asked_length_and_shared_by_so_many() -> None:
    words = ("--workload", "documents", "--document-share", "0.3", "--document-tokens", "900", "--questions", "4")
    asked = first(1000, *words)
    about = [planned for planned in asked if planned.group == "document"]
    assert len(about) == pytest.approx(300, rel=0.15)
    assert {planned.group for planned in asked} == {"chat", "document"}
    for place, planned in enumerate(about):
        assert planned.prefix == ((f"document/{place // 4}", 900),)
        assert 900 < planned.prompt_tokens < 1000
    texts = [planned.prompt[0]["content"].partition("\n\nFrage zum Dokument")[0] for planned in about]
    assert len(set(texts[:8])) == 2
    assert all(len(text) / 900 == pytest.approx(2.6, rel=0.01) for text in texts)


def test_warming_up_takes_the_lengths_but_not_the_texts() -> None:
    workload = workloads.from_options(options("--workload", "random", "--input-tokens", "uniform:20:90"), "completions")
    measured = list(islice(workload.requests(), 20))
    warming = list(islice(WarmUp(workload, 1, "completions", ESTIMATED).requests(), 20))
    assert [planned.prompt_tokens for planned in warming] == [planned.prompt_tokens for planned in measured]
    assert all(one.prompt != other.prompt for one, other in zip(warming, measured, strict=True))


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
46,GPT-4,100,0,100,API log
118,GPT-4,417,276,693,Conversation log
"""
LINES = """{"arrival": 10.5, "input_tokens": 5, "output_tokens": 3}
{"arrival": 10, "messages": [{"role": "user", "content": "Guten Tag!"}], "output_tokens": 64, "group": "chat"}

{"arrival": 11, "prompt": "Es war einmal", "output_tokens": 128}
{"arrival": 12, "prompt": [5, 6, 7], "output_tokens": 1}
"""


def trace(tmp_path: Path, content: str, form: Form = "completions") -> list[Planned]:
    file = tmp_path / "trace.csv"
    file.write_text(content, encoding="utf-8")
    return first(99, "--workload", "trace", "--trace", str(file), form=form)


def test_azures_columns_are_read_as_published(tmp_path: Path) -> None:
    asked = trace(tmp_path, AZURE)
    assert [(planned.prompt_tokens, planned.output_tokens) for planned in asked] == [(374, 44), (396, 109), (879, 55)]
    assert [planned.arrival for planned in asked] == pytest.approx([0, 4.314579, 4.541977], abs=1e-5)
    assert [len(planned.prompt) for planned in asked] == [374, 396, 879]


def test_azures_newer_timestamps_are_read_too(tmp_path: Path) -> None:
    newer = AZURE.replace("46.6805900", "46.680590+00:00").replace("50.9951690", "50.995169+00:00")
    assert [planned.arrival for planned in trace(tmp_path, newer)] == pytest.approx([0, 4.314579, 4.541977], abs=1e-5)


def test_burstgpts_columns_are_read_as_published_but_for_what_was_not_answered(tmp_path: Path) -> None:
    asked = trace(tmp_path, BURSTGPT)
    assert [(planned.arrival, planned.prompt_tokens, planned.output_tokens) for planned in asked] == [
        (0, 472, 18),
        (40, 1087, 230),
        (113, 417, 276),
    ]
    told = workloads.from_options(options("--workload", "trace", "--trace", str(tmp_path / "trace.csv"))).parameters
    assert told == {"name": "trace", "file": "trace.csv", "requests": 3, "without_answer": 1, "seed": 1}


def test_json_lines_bring_their_own_prompts(tmp_path: Path) -> None:
    chat, made, text, ids = trace(tmp_path, LINES, form="chat")
    assert (chat.prompt, chat.group, chat.arrival) == ([{"role": "user", "content": "Guten Tag!"}], "chat", 0)
    assert (made.arrival, made.prompt_tokens) == (0.5, 5)
    assert text.prompt == [{"role": "user", "content": "Es war einmal"}]
    completions = trace(tmp_path, LINES)
    assert completions[2].prompt == "Es war einmal"
    assert (completions[3].prompt, completions[3].prompt_tokens) == ([5, 6, 7], 3)
    assert ids.output_tokens == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a,b,c\n1,2,3\n", "neither TIMESTAMP"),
        (AZURE + "gestern,1,1\n", "line 5"),
        (AZURE + "2023-11-16 18:15:52,1\n", "line 5"),
        (BURSTGPT.splitlines()[0], "has no requests"),
        ('{"arrival": 1, "output_tokens": 3}', "line 1: give one of"),
        ('{"arrival": 1, "output_tokens": 3, "prompt": "a", "input_tokens": 3}', "line 1: give one of"),
        ('{"arrival": 1, "output_tokens": 3, "promt": "a"}', "line 1: .*promt"),
        ('{"arrival": 1, "output_tokens": 3, "input_tokens": 0}', "line 1: input_tokens is at least 1"),
        ("", "neither TIMESTAMP"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(BadTrace, match=why):
        trace(tmp_path, content)


def test_a_trace_needs_a_file() -> None:
    with pytest.raises(BadTrace, match="needs --trace"):
        first(1, "--workload", "trace")
    with pytest.raises(BadTrace, match="No such file"):
        first(1, "--workload", "trace", "--trace", "nowhere.csv")


@pytest.mark.parametrize("text", ["uniform:9:3", "normal:3:1", "lognormal:0:1", "0", "uniform:1", "x"])
def test_what_is_no_distribution_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--input-tokens", text)
    assert "--input-tokens" in capsys.readouterr().err


def test_every_line_of_the_data_is_what_it_should_be() -> None:
    folder = Path(workloads.__file__).parent / "data"
    for file in folder.glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert json.loads(line)
