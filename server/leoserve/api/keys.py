"""The keys that open the server now: those of `leoserve.keyfile`, whose file is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from leoserve.api.ledger import Ledger
from leoserve.api.rates import Allowance
from leoserve.board import Board
from leoserve.keyfile import Quota, configured
from leoserve.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

SETTLED_NS = 2_000_000_000  # a file that changed this recently may change again without a newer time of change
Signature = tuple[int, ...]  # empty: there is no such file


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever holds one key; or, on a server without keys, everybody. `key_hash`: SHA-256 of the key, or None."""

    key_hash: bytes | None
    allowance: Allowance


class Keys:
    """The keys that open the server now. Raises SettingsError when they cannot be read at the start.

    Later a file that cannot be read, or holds no key, changes nothing but the log: the keys before it stay. Of several
    API processes each reads the file, and what a client has spent stands where `board` shares it.
    """

    def __init__(self, settings: Settings, board: Board | None = None) -> None:
        self.path = settings.api_key_file
        self.default = Quota(settings.requests_per_minute, settings.tokens_per_minute)
        self._board = board or Board()
        self._ledger = Ledger(self._board)
        self.everybody = Client(None, Allowance(self.default, self._ledger))
        self._settings = settings
        self._secret = secrets.token_bytes(32)
        self._clients: dict[bytes, Client] = {}
        self._fault = ""
        self._signature: Signature | None = None  # of the file as it was read; None: it has to be read again
        self._take(configured(settings), ())

    @property
    def needed(self) -> bool:
        return bool(self._clients)

    def client(self, key: bytes) -> Client | None:
        """Who holds `key`; None where nobody does.

        The index is by a keyed hash, so that how long the search takes tells nothing that a caller could use.
        """
        if self.path is not None:
            self._refresh(self.path)
        presented = self._digest(key)
        found = self._clients.get(presented)
        return found if found is not None and hmac.compare_digest(presented, self._digest(key)) else None

    def _refresh(self, path: Path) -> None:
        """Read the file again if it is another than last time. A link to it may have been turned to another file, as
        Kubernetes does with its secrets."""
        now = signature(path)
        if now == self._signature:
            return
        self._signature = now if settled(now) else None
        try:
            quotas = configured(self._settings)
        except SettingsError as error:
            if str(error) != self._fault and self._board.news(f"{error} {now}"):
                logger.warning("%s; the keys stay as they were", error)
            self._fault = str(error)
        else:
            self._fault = ""
            self._take(quotas, now)

    def _take(self, quotas: dict[str, Quota], found: Signature) -> None:
        """From now on these keys, of a file of this signature. One that stays keeps what it has spent, unless its
        limits are others now."""
        clients = {}
        for key, quota in quotas.items():
            digest = self._digest(key.encode())
            known = self._clients.get(digest)
            if known is None or known.allowance.quota != quota:
                key_hash = hashlib.sha256(key.encode()).digest()
                known = Client(key_hash, Allowance(quota, self._ledger, key_hash))
            clients[digest] = known
        changed = self._clients and clients.keys() != self._clients.keys()
        if changed and self._board.news(f"keys {found}"):
            logger.info("--api-key-file %s: %d keys, before %d", self.path, len(clients), len(self._clients))
        self._clients = clients

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._secret, key, "sha256")


def signature(path: Path) -> Signature:
    """What changes when the file, or where a link leads, does."""
    try:
        its = os.stat(path)
    except OSError:
        return ()
    return its.st_dev, its.st_ino, its.st_size, its.st_mtime_ns, its.st_ctime_ns


def settled(found: Signature) -> bool:
    """Whether the file was last changed long enough ago that any other change would have another time."""
    return not found or abs(time.time_ns() - found[-1]) > SETTLED_NS
