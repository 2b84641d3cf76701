"""instructor, in each of its modes that an OpenAI-compatible server can have."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import instructor
import openai
import pytest
from instructor.core.exceptions import InstructorRetryException
from pydantic import AfterValidator, BaseModel, Field

MODEL = "leoserve-demo"
MESSAGES: Any = [{"role": "user", "content": "Nenne eine Stadt."}]
ENFORCED = [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA]


class City(BaseModel):
    name: str = Field(max_length=8)
    river: Literal["Rhein", "Spree", "Düssel"]
    days: Annotated[int, Field(ge=1, le=14)]


def client(mode: instructor.Mode) -> Any:
    address = f"{os.environ['LEOSERVE_URL']}/v1"
    return instructor.from_openai(openai.OpenAI(base_url=address, api_key="none", max_retries=0), mode=mode)


@pytest.mark.parametrize("mode", ENFORCED)
@pytest.mark.parametrize("temperature", [0, 2])
def test_the_model_of_an_answer_is_filled_at_the_first_try(mode: instructor.Mode, temperature: int) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": temperature, "seed": 1}
    city, raw = client(mode).chat.completions.create_with_completion(response_model=City, max_retries=0, **ask)
    assert isinstance(city, City)
    assert raw.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", ENFORCED)
def test_a_model_is_filled_as_it_streams(mode: instructor.Mode) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 2, "seed": 1}
    partial = list(client(mode).chat.completions.create_partial(response_model=City, **ask))
    assert len(partial) > 3
    City.model_validate(partial[-1].model_dump())


def test_several_of_a_model_come_one_by_one() -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 2, "seed": 1, "max_tokens": 800}
    cities = client(instructor.Mode.TOOLS).chat.completions.create(response_model=Iterable[City], stream=True, **ask)
    first = next(iter(cities))
    assert isinstance(first, City)


def test_an_answer_that_its_own_validator_refuses_is_asked_for_again() -> None:
    tries: list[str] = []

    def third(value: str) -> str:
        tries.append(value)
        if len(tries) < 3:
            raise ValueError("Noch einmal, bitte.")
        return value

    class Stubborn(BaseModel):
        river: Annotated[Literal["Rhein", "Spree"], AfterValidator(third)]

    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0}
    create = client(instructor.Mode.TOOLS).chat.completions.create
    assert create(response_model=Stubborn, max_retries=3, **ask).river in ("Rhein", "Spree")
    assert len(tries) == 3
    tries.clear()
    with pytest.raises(InstructorRetryException):
        create(response_model=Stubborn, max_retries=1, **ask)


def test_an_asynchronous_client() -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{os.environ['LEOSERVE_URL']}/v1", api_key="none") as plain:
            wrapped = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
            return await wrapped.chat.completions.create(model=MODEL, messages=MESSAGES, response_model=City)

    assert isinstance(asyncio.run(ask()), City)
