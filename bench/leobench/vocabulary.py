"""What words cost with a server's tokenizer, where it tells: vLLM's POST /tokenize, which leoserve has, too."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec
from msgspec import Struct

from leobench.workloads import ESTIMATED, Words

AT_ONCE = 8
BEFORE = "und"  # every word is counted after this one and a space, as it will stand


class Tokens(Struct):
    count: int
    tokens: list[int] = []


async def words_of(session: aiohttp.ClientSession, url: str, model: str, headers: dict[str, str]) -> Words:
    """The words of made-up prompts with what each costs; the estimates where the server does not tell."""
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(**said: object) -> Tokens:
        async with (
            places,
            session.post(f"{url}/tokenize", json={"model": model, **said}, headers=headers) as response,
        ):
            response.raise_for_status()
            return msgspec.json.decode(await response.read(), type=Tokens)

    try:
        alone = await ask(prompt=BEFORE, add_special_tokens=False)
        within = await ask(messages=[{"role": "user", "content": BEFORE}])
        told = await asyncio.gather(
            *(ask(prompt=f"{BEFORE} {word}", add_special_tokens=False) for word in ESTIMATED.words)
        )
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
        return ESTIMATED
    costs = [max(1, one.count - alone.count) for one in told]
    ids = sorted({token for one in told for token in one.tokens[alone.count :]})
    return Words(ESTIMATED.words, costs, ids or ESTIMATED.ids, within.count - alone.count, exact=True)
