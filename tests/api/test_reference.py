"""docs/api.md is what the models say, and they know every field that OpenAI's SDK can send."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from leoserve.api.protocol.base import Body
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.completions import CompletionRequest
from leoserve.api.protocol.responses import ResponsesRequest
from leoserve.api.reference import reference, table
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m leoserve.api.reference > docs/api.md"


def test_every_link_within_the_page_has_its_heading() -> None:
    page = reference()
    anchors = {name.lower() for name in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    anchors |= set(re.findall(r'<a id="([^"]+)">', page))
    links = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert len(links) > 20
    assert links <= anchors


def test_a_cell_keeps_its_row_together() -> None:
    assert list(table(["a"], [["x | y\nz"]]))[-1] == "| x \\| y z |"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ChatRequest, chat_create_params.CompletionCreateParamsNonStreaming),
        (ChatRequest, chat_create_params.CompletionCreateParamsStreaming),
        (CompletionRequest, completion_create_params.CompletionCreateParamsNonStreaming),
        (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
        (ResponsesRequest, response_create_params.ResponseCreateParamsNonStreaming),
        (ResponsesRequest, response_create_params.ResponseCreateParamsStreaming),
    ],
)
def test_every_field_of_the_sdk_is_known(ours: type[Body], theirs: Any) -> None:
    fields = get_type_hints(theirs).keys()
    assert len(fields) > 10
    known = {field.alias or name for name, field in ours.model_fields.items()}
    assert fields - known == set()
