"""Bearer keys: kept and compared as hashes, in constant time.

A route is open or needs a key by the router it was registered on, never by anything in its URL.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request

from leoserve.api.errors import ApiError


def hash_key(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def matching_hash(hashes: Sequence[bytes], key: bytes) -> bytes | None:
    """The hash that `key` has, if it is among `hashes`. Takes the same time wherever, and whether, it is there."""
    presented = hash_key(key)
    found = None
    for known in hashes:
        if hmac.compare_digest(known, presented):
            found = known
    return found


def require_key(keys: Sequence[str]) -> Callable[[Request], Awaitable[None]]:
    """A dependency for the routes that need one of `keys`; without keys it lets everybody in.

    It leaves the key's hash in `request.state.key_hash` (None without keys) and raises ApiError 401.
    """
    hashes = [hash_key(key.encode()) for key in keys]

    async def check(request: Request) -> None:
        request.state.key_hash = None
        if not hashes:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        found = matching_hash(hashes, key.strip().encode("latin-1"))  # a header's bytes, as they came
        if scheme.lower() != "bearer" or found is None or not key.strip():
            fault = "is not valid" if key else "is missing"
            raise ApiError(
                401,
                f"The API key {fault}. Send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        request.state.key_hash = found

    return check
