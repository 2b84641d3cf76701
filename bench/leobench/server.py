"""Finds out what serves, before it is loaded."""

from __future__ import annotations

from typing import Any

import aiohttp
from msgspec import Struct

from leobench.options import Unusable, without_password


class Server(Struct, frozen=True):
    """model: what requests name. version: what the server says of itself, where it does."""

    model: str
    version: str | None


async def find_server(
    session: aiohttp.ClientSession, urls: list[str], model: str | None, headers: dict[str, str]
) -> Server:
    """Check that every server is there, and take the first one's first model where none is named. Raises Unusable."""
    served = [await _models(session, url, headers, required=model is None) for url in urls]
    if model is None:
        if not served[0]:
            raise Unusable(f"{without_password(urls[0])} serves no model; name one with --model")
        model = served[0][0]
    for url, names in zip(urls, served, strict=True):
        if names and model not in names:
            raise Unusable(f"{without_password(url)} does not serve {model}; --model can be {', '.join(names)}")
    return Server(model, await _version(session, urls[0], headers))


async def _models(session: aiohttp.ClientSession, url: str, headers: dict[str, str], *, required: bool) -> list[str]:
    """What a server says it serves; nothing, where it has no such route and need not. Raises Unusable."""
    shown = without_password(url)
    try:
        async with session.get(f"{url}/v1/models", headers=headers) as response:
            if response.status == 401:
                raise Unusable(f"{shown} wants a key: --api-key or the variable LEOBENCH_API_KEY")
            if response.status == 200:
                content: Any = await response.json(content_type=None)
                return [str(entry["id"]) for entry in content["data"]]
            problem = f"it answered {response.status}"
    except (TimeoutError, aiohttp.ClientConnectionError, OSError) as error:
        raise Unusable(f"no server at {shown}: {error or 'it does not answer'}") from None
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        problem = "its answer is none of OpenAI's"
    if required:
        raise Unusable(f"{shown}/v1/models does not tell what is served ({problem}); name it with --model")
    return []


async def _version(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> str | None:
    """By GET /version, which leoserve and vLLM have."""
    try:
        async with session.get(f"{url}/version", headers=headers) as response:
            return str((await response.json(content_type=None))["version"]) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
        return None
