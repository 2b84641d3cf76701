"""What the scheduler hands the runner, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from leoserve.engine.request import Request, TokenLogprobs


@dataclass(slots=True)
class Admitted:
    """A sequence that has just got its slot: what the runner needs to know of it once."""

    request: Request
    index: int
    generated: list[int]  # non-empty after a preemption


@dataclass(slots=True)
class Row:
    """One sequence's part of a step: tokens to compute and where their keys and values go.

    The keys and values of token `i` of `tokens` belong to position `start + i`, in block
    `table[(start + i) // block_size]`, where `table` is the slot's block table after `new_blocks` were put into it.
    """

    slot: int
    start: int
    tokens: list[int]
    new_blocks: list[int]  # appended to the slot's table; the whole table when `admitted` is set
    samples: bool  # the last token's logits are sampled
    admitted: Admitted | None = None
    targets: list[int] | None = None  # prompt tokens whose log-probabilities are wanted: those after each of `tokens`


@dataclass(slots=True)
class Step:
    """One forward pass. Rows of one token come first. `copies` (source, target) blocks are copied before anything."""

    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


@dataclass(slots=True)
class RowResult:
    """What one row brought. `error` fails its sequence, and no other."""

    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
