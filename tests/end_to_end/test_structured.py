"""The form of an answer, of a model that knows nothing: a real server, random weights, temperature 2, OpenAI's SDK."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from leoserve.model.grammar import Grammars
from leoserve.model.step import Grammar
from leoserve.text.tokenizer import Tokenizer
from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

MODEL = "leo"
QUESTION: Any = [{"role": "user", "content": "Wie viele Äpfel?"}]
SCHEMAS = Path(__file__).parents[1] / "text" / "schemas"
CASES = [json.loads(path.read_text()) for path in sorted(SCHEMAS.glob("*.json"))]
GOOD = [case for case in CASES if not case["refused"]]
DRAFT = jsonschema.Draft202012Validator
MOST = 300  # tokens of an answer

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "mistral")


@pytest.fixture(scope="module")
def server(serve_once: Serve, checkpoint: Path) -> Server:
    # Two threads: one then follows the grammars while the other goes on.
    return serve_once(checkpoint, "--num-kv-blocks", "512", "--dtype", "float32", "--threads", "2")


def ask_all(server: Server, bodies: list[Answer]) -> list[httpx.Response]:
    """All at once."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))

    return asyncio.run(ask())


def chat(seed: int = 0, **fields: Any) -> Answer:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 2, "seed": seed, "max_tokens": MOST}
    return body | {"return_token_ids": True} | fields


def by_schema(schema: Any, **fields: Any) -> Answer:
    form = {"type": "json_schema", "json_schema": {"name": "antwort", "schema": schema, "strict": True}}
    return chat(**fields, response_format=form)


def begins(schema: Any, tokens: list[int], tokenizer: Tokenizer) -> bool:
    """Whether these tokens can become an answer that follows the schema."""
    grammar = Grammars(tokenizer.token_table()).compile(Grammar("json_schema", json.dumps(schema), ""))
    return grammar.start(tokens).error is None


def test_every_schema_is_kept_by_a_model_that_knows_nothing(server: Server, checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    asked = [(case, by_schema(case["schema"], seed=seed)) for case in GOOD for seed in (1, 2)]
    asked = [(case, body) for case, body in asked if isinstance(case["schema"], dict)]
    ended = 0
    for (case, _), answer in zip(asked, ask_all(server, [body for _, body in asked]), strict=True):
        assert answer.status_code == 200, (case["name"], answer.text)
        choice = answer.json()["choices"][0]
        text = choice["message"]["content"]
        if choice["finish_reason"] == "stop":
            ended += 1
            DRAFT(case["schema"], format_checker=DRAFT.FORMAT_CHECKER).validate(json.loads(text))
        else:
            assert choice["finish_reason"] == "length"
            assert len(choice["token_ids"]) == MOST
            assert begins(case["schema"], choice["token_ids"], tokenizer), case["name"]
    assert ended > len(asked) / 2


def test_what_cannot_be_kept_is_a_400_before_the_first_token(server: Server) -> None:
    refused = [case for case in CASES if case["refused"] and isinstance(case["schema"], dict)]
    for stream in (False, True):
        for case, answer in zip(
            refused, ask_all(server, [by_schema(case["schema"], stream=stream) for case in refused]), strict=True
        ):
            assert answer.status_code == 400, case["name"]
            error = answer.json()["error"]
            assert (error["type"], error["param"]) == (
                "invalid_request_error",
                "response_format.json_schema.schema",
            ), error
            assert error["code"] is None, "as OpenAI tells it"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"(Ja|Nein), \d{1,3} Äpfel[.!]"}, r"(Ja|Nein), \d{1,3} Äpfel[.!]"),
        ({"choice": ["ein Apfel", "zwei Äpfel", '"keine"\n']}, '(ein Apfel|zwei Äpfel|"keine"\n)'),
        ({"grammar": 'start: ZAHL (" und " ZAHL)? " Äpfel"\nZAHL: /[1-9][0-9]?/'}, r"[1-9]\d?( und [1-9]\d?)? Äpfel"),
        ({"grammar": 'root ::= [1-9] " Äpfel" ("!" | "?")'}, "[1-9] Äpfel[!?]"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 12}}, "[3-9]|1[0-2]"),
        ({"json": '{"enum": ["drei", 4]}'}, '"drei"|4'),
    ],
)
def test_structured_outputs(server: Server, form: Answer, pattern: str) -> None:
    bodies = [chat(seed=seed, structured_outputs=form, n=2) for seed in range(3)]
    texts = set()
    for answer in ask_all(server, bodies):
        for choice in answer.json()["choices"]:
            assert choice["finish_reason"] == "stop"
            assert re.fullmatch(pattern, choice["message"]["content"]), choice
            texts.add(choice["message"]["content"])
    assert len(texts) > 1, "the model chose what it could"


def test_structured_completions_by_the_sdk(server: Server) -> None:
    answer = server.openai().completions.create(
        model=MODEL, prompt="Eine Zahl:", max_tokens=60, extra_body={"structured_outputs": {"regex": "[0-9]{4}"}}
    )
    assert re.fullmatch("[0-9]{4}", answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


class Entry(BaseModel):
    day: date
    kind: Literal["größer", "kleiner"]
    words: Annotated[list[Annotated[str, Field(max_length=6)]], Field(max_length=2)]
    amount: Annotated[int, Field(ge=1, le=20)]
    next: Entry | None


def test_the_sdk_parses_into_models(server: Server) -> None:
    client = server.openai()
    entries = []
    for seed in range(4):
        options: Any = {"model": MODEL, "messages": QUESTION, "response_format": Entry, "temperature": 2, "seed": seed}
        if seed % 2:
            with client.chat.completions.stream(**options) as stream:
                answer = stream.get_final_completion()
        else:
            answer = client.chat.completions.parse(**options)
        entries.append(answer.choices[0].message.parsed)
        assert isinstance(entries[-1], Entry)
    assert len({entry.model_dump_json() for entry in entries}) == 4
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=MODEL, messages=QUESTION, response_format=Entry, temperature=2, max_tokens=3
        )


def test_any_object(server: Server) -> None:
    bodies = [chat(seed=seed, response_format={"type": "json_object"}) for seed in range(20)]
    ends = []
    for answer in ask_all(server, bodies):
        choice = answer.json()["choices"][0]
        ends.append(choice["finish_reason"])
        assert choice["message"]["content"].startswith("{")
        if ends[-1] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert "stop" in ends


def streamed(answer: httpx.Response) -> Iterator[Answer]:
    *chunks, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    for chunk in chunks:
        yield from json.loads(chunk.removeprefix("data: "))["choices"]


def test_a_stream_is_the_whole_answer_and_other_rows_are_what_they_are_alone(server: Server) -> None:
    schema = GOOD[0]["schema"]
    forms = [by_schema(schema, seed=seed, logprobs=True) for seed in range(4)]
    free = [chat(seed=seed, logprobs=True, top_logprobs=2, max_tokens=60) for seed in range(4)]
    alone = [ask_all(server, [body])[0].json()["choices"] for body in (*free, *forms)]
    together = [answer.json()["choices"] for answer in ask_all(server, [*free, *forms])]
    assert together == alone
    for whole, answer in zip(alone[4:], ask_all(server, [body | {"stream": True} for body in forms]), strict=True):
        pieces = list(streamed(answer))
        assert "".join(piece["delta"].get("content", "") for piece in pieces) == whole[0]["message"]["content"]
        assert pieces[-1]["finish_reason"] == whole[0]["finish_reason"]


def test_what_leaves_no_token_is_an_error_of_that_request_alone(server: Server) -> None:
    tokenizer_digits = {"structured_outputs": {"regex": "[0-9]{3}"}, "allowed_token_ids": [5]}
    beside = chat(seed=5, max_tokens=40)
    (expected,) = ask_all(server, [beside])
    broken, other = ask_all(server, [chat(**tokenizer_digits), beside])
    assert broken.status_code == 400
    assert broken.json()["error"]["type"] == "invalid_request_error"
    assert other.json()["choices"] == expected.json()["choices"]


def test_answers_survive_preemptions(serve_once: Serve, checkpoint: Path, server: Server) -> None:
    small = serve_once(checkpoint, "--num-kv-blocks", "8", "--max-model-len", "256", "--dtype", "float32")
    schema = {"type": "array", "items": {"enum": ["Größe", "Maß"]}, "minItems": 15, "maxItems": 15}
    bodies = [by_schema(schema, seed=seed, max_tokens=220) for seed in range(6)]
    want = [answer.json()["choices"] for answer in ask_all(server, bodies)]
    assert [answer.json()["choices"] for answer in ask_all(small, bodies)] == want
    assert all(choices[0]["finish_reason"] == "stop" for choices in want)
    metrics = httpx.get(f"{small.url}/metrics", timeout=PATIENCE).text
    assert float(re.search(r"^leoserve_preemptions_total(?:{.*})? (\S+)", metrics, re.MULTILINE)[1]) > 0  # type: ignore[index]
