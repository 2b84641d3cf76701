"""Who is calling, and whether they may: bearer keys, and the limits of each.

A route is open or needs a key by the router it was registered on, never by anything in its URL.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from leoserve.api.errors import ApiError
from leoserve.api.keys import Keys
from leoserve.api.rates import Charge


def require_key(keys: Keys) -> Callable[[Request], Awaitable[None]]:
    """A dependency for the routes that need one of `keys`; without keys it lets everybody in, as one client.

    It leaves the key's hash in `request.state.key_hash` (None without keys) and what the request may spend in
    `request.state.charge`. Only POST spends a request. Raises ApiError 401 and 429.
    """

    async def check(request: Request) -> None:
        client = keys.everybody
        if keys.needed:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            found = keys.client(key.strip().encode("latin-1"))  # a header's bytes, as they came
            if scheme.lower() != "bearer" or found is None:
                raise unauthorized("Incorrect API key provided." if key else "You didn't provide an API key.")
            client = found
        request.state.key_hash = client.key_hash
        request.state.charge = charge = Charge(client.allowance)
        if request.method == "POST":
            charge.begin()

    return check


def unauthorized(fault: str) -> ApiError:
    """401 in OpenAI's words: gateways tell by them, not by the status, that it is the key (litellm 1.106)."""
    return ApiError(
        401,
        f"{fault} Send it as 'Authorization: Bearer KEY'.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
