"""How much a client may ask for in a minute: requests, and tokens of prompts and answers.

Both refill evenly (the generic cell rate algorithm): a client that has been quiet for a minute may spend a whole
minute's worth at once. Tokens are counted as OpenAI does: before an answer its prompt and its `max_tokens` are set
aside, or the prompt alone where the answer may fill the model's context; at its end what was really used is spent
instead. An answer longer than what was set aside for it makes a debt, which the refill pays first.
"""

from __future__ import annotations

import hashlib
import math
from time import monotonic
from typing import Literal, get_args

from leoserve.api.errors import MAX_RETRY_AFTER, ApiError
from leoserve.api.ledger import Ledger
from leoserve.board import Board, Row
from leoserve.keyfile import Quota

MINUTE = 60.0  # seconds
ROUNDING = 1e-3  # units
Kind = Literal["requests", "tokens"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Bucket:
    """`limit` units a minute. What is spent runs off evenly; more may be spent than there is.

    Its cells may be shared with other processes: the first is the time at which everything spent will have run off, the
    others are what each process has set aside for what is under way; `place` is this one's.
    """

    def __init__(self, limit: int, cells: Row, place: int = 1) -> None:
        self.limit = limit
        self._cells = cells
        self._place = place

    @property
    def left(self) -> int:
        """What can still be spent, or set aside, now."""
        return max(0, math.floor(self.limit - self._level() + ROUNDING))

    @property
    def full_after(self) -> float:
        """Seconds until nothing is spent any more, if nothing else comes and what is set aside is used."""
        return self._level() * MINUTE / self.limit

    def wait_for(self, amount: int) -> float:
        """Seconds until `amount` is there, if nothing else comes; `inf` when it never will be."""
        if amount > self.limit:
            return math.inf
        return max(0.0, self._level() + amount - self.limit) * MINUTE / self.limit

    def spend(self, amount: int) -> None:
        self._cells[0] = max(self._cells[0], monotonic()) + amount * MINUTE / self.limit

    def set_aside(self, amount: int) -> None:
        """A negative amount is given back."""
        self._cells[self._place] += amount

    def _level(self) -> float:
        """What is spent and has not run off, and what is set aside."""
        until, *aside = self._cells
        return max(0.0, until - monotonic()) * self.limit / MINUTE + sum(aside)


class Allowance:
    """What one client may spend, by the account that `ledger` has for it. `client`: tells it from others."""

    def __init__(self, quota: Quota, ledger: Ledger | None = None, client: bytes = b"") -> None:
        self.quota = quota
        self.ledger = ledger or Ledger(Board())
        self._client = client
        self._buckets: dict[Kind, Bucket] | None = None  # from the first request on: most keys of a long file are idle

    @property
    def buckets(self) -> dict[Kind, Bucket]:
        if self._buckets is None:
            limits = (self.quota.requests_per_minute, self.quota.tokens_per_minute)
            # With other limits begins another account.
            name = hashlib.sha256(f"{limits} ".encode() + self._client).digest()
            accounts = self.ledger.account(name) if any(limits) else [[]] * len(KINDS)
            self._buckets = {
                kind: Bucket(limit, cells, self.ledger.place())
                for kind, limit, cells in zip(KINDS, limits, accounts, strict=True)
                if limit is not None
            }
        return self._buckets

    def headers(self) -> dict[str, str]:
        """OpenAI's headers that tell a client what it has left."""
        told = {}
        for kind, bucket in self.buckets.items():
            told[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
            told[f"x-ratelimit-remaining-{kind}"] = str(bucket.left)
            told[f"x-ratelimit-reset-{kind}"] = duration(bucket.full_after)
        return told


class Charge:
    """What one request takes of its client's allowance."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self._reserved = 0

    @property
    def limits_tokens(self) -> bool:
        return "tokens" in self.allowance.buckets

    def begin(self) -> None:
        """Spend one request. Raises ApiError when none is left, or no token: then its prompt need not be read."""
        buckets = self.allowance.buckets
        if not buckets:
            return
        with self.allowance.ledger.locked():
            for kind, bucket in buckets.items():
                if bucket.left < 1:
                    raise spent(kind, bucket, 1)
            if "requests" in buckets:
                buckets["requests"].spend(1)

    def reserve(self, tokens: int) -> None:
        """Set aside the tokens that the request may use. Raises ApiError when they are not left."""
        bucket = self.allowance.buckets.get("tokens")
        if bucket is None:
            return
        with self.allowance.ledger.locked():
            if bucket.left < tokens:
                raise spent("tokens", bucket, tokens)
            bucket.set_aside(tokens)
        self._reserved += tokens

    def settle(self, tokens: int) -> None:
        """Spend the tokens that the request has used, instead of those set aside."""
        bucket = self.allowance.buckets.get("tokens")
        if bucket is None:
            return
        with self.allowance.ledger.locked():
            bucket.set_aside(-self._reserved)
            self._reserved = 0
            if tokens:
                bucket.spend(tokens)


def header_names() -> list[str]:
    """Of all headers that `Allowance.headers` may give."""
    return [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in KINDS]


def spent(kind: Kind, bucket: Bucket, wanted: int) -> ApiError:
    """429, in OpenAI's words, with the wait after which the same request will be let in."""
    wait = bucket.wait_for(wanted)
    numbers = f"Limit {bucket.limit}, Used {bucket.limit - bucket.left}, Requested {wanted}."
    if math.isinf(wait):
        message = f"Request too large on {kind} per min: {numbers} It can never be let in: ask for fewer {kind}."
        headers = {"x-should-retry": "false"}
    else:
        message = f"Rate limit reached on {kind} per min: {numbers} Please try again in {duration(wait)}."
        seconds = min(max(1, math.ceil(wait)), MAX_RETRY_AFTER)
        headers = {"Retry-After": str(seconds), "retry-after-ms": str(min(math.ceil(wait * 1000), seconds * 1000))}
    return ApiError(429, message, type=kind, code="rate_limit_exceeded", headers=headers, reason="rate_limited")


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s, 1h0m0s."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds == 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    told = f"{milliseconds / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{told}"
    return f"{minutes}m{told}" if minutes else told
