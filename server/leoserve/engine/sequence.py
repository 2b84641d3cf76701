"""The engine's state of one choice of a request."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leoserve.engine.cache import BlockHash, hash_block, hash_salt
from leoserve.engine.request import Request, TokenLogprobs

if TYPE_CHECKING:
    from leoserve.model.grammar import Answer

NO_SLOT = -1


class Status(enum.Enum):
    """Where a sequence is. A preempted one is waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice: its tokens, how many of them have keys and values in the cache, and where.

    `tokens` are the prompt's and then the generated ones, as far as they are known here; `num_pending` more are being
    sampled by steps in flight. Positions below `num_computed` have their keys and values in `blocks`, or will have
    before any later step looks. `slot` is the row of the runner's persistent state, held while running.

    What every step looks at comes first, to lie in as few cache lines as it can.
    """

    request: Request
    index: int
    serial: int  # breaks ties of arrival
    tokens: list[int]
    limit: int  # of `tokens`: it ends there in any case
    status: Status = Status.WAITING
    num_computed: int = 0
    ready_until: int = 0  # if it has sampled: for positions below, a step needs nothing that the runner does not know
    slot: int = NO_SLOT
    request_id: str = field(init=False)
    stop_token_ids: tuple[int, ...] = field(init=False)
    num_cached: int = 0  # prompt tokens that needed no computing when the sequence first ran
    scheduled_at: float | None = None  # when it first got a place in a step
    has_sampled: bool = False  # in its present slot: the runner then has the last token
    num_prompt: int = field(init=False)
    known_first: bool = field(init=False)  # whether a token must be known before the next can be chosen
    blocks: list[int] = field(default_factory=list)
    num_uploaded: int = 0  # leading blocks that the runner knows of
    num_indexed: int = 0  # leading full blocks that were offered to the prefix index
    paced: bool = False  # the prompt takes several steps: see pacing.py
    grammar: Answer | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # collected until the prompt is computed
    _hashes: list[BlockHash] = field(default_factory=list)

    def __post_init__(self) -> None:
        params = self.request.params
        self.num_prompt = len(self.request.prompt)
        self.request_id, self.stop_token_ids = self.request.request_id, params.stop_token_ids
        self.known_first = params.grammar is not None or any(len(word) > 1 for word in params.bad_words)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def length(self) -> int:
        """Tokens, those included that are being sampled. Who has sampled once has one more than are computed."""
        return self.num_computed + 1 if self.has_sampled else len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Tokens that are being sampled."""
        return self.length - len(self.tokens)

    @property
    def num_uncomputed(self) -> int:
        return self.length - self.num_computed

    @property
    def order(self) -> tuple[int, float, int]:
        """Lower runs earlier and is preempted later."""
        return (self.request.priority, self.request.arrival, self.serial)

    def hashes(self, block_size: int, count: int) -> list[BlockHash]:
        """The chained hashes of the first `count` blocks, all of them full."""
        while len(self._hashes) < count:
            start = len(self._hashes) * block_size
            parent = self._hashes[-1] if self._hashes else hash_salt(self.request.salt)
            self._hashes.append(hash_block(parent, self.tokens[start : start + block_size]))
        return self._hashes[:count]
