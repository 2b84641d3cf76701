"""What the scheduler hands the runner, and what comes back. Plain records; torch is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from leoserve.model.grammar import Answer

ErrorKind = Literal["invalid", "grammar", "internal"]
GrammarKind = Literal["json_schema", "regex", "lark", "grammar"]


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must be: JSON that a schema describes, a match of a regular expression, a text of a grammar.

    `source` by `kind`: a JSON schema; a regular expression; a grammar of this server's making in llguidance's dialect
    of Lark; one of a client's, in the same or in GBNF. `param`: the field of the request that asks for it, for errors.
    """

    kind: GrammarKind
    source: str
    param: str


class TokenTable(msgspec.Struct, frozen=True, tag="tokens"):
    """The tokenizer as grammars see it."""

    pieces: list[bytes]  # what each id adds to a text; b"" where it has no token
    control: list[int]  # ids that are no text
    ends: list[int]  # of these, the ids that end an answer


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request's tokens are chosen. Everything is validated before it gets here.

    `seed` is always set: the API process draws one where the client gave none. Choice `i` of a request draws its noise
    from (seed, i, position).
    """

    max_tokens: int
    seed: int = 0  # 0 .. 2**64 - 1
    n: int = 1
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # 0 keeps only the most likely token
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over generated tokens
    frequency_penalty: float = 0.0  # over generated tokens
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed
    min_tokens: int = 0  # until then no token of `stop_token_ids` is sampled
    stop_token_ids: tuple[int, ...] = ()  # ends of turn and of text are among them unless the client ignores them
    logprobs: int | None = None  # None: none; k: the chosen token's and the k most likely ones'
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


class TokenLogprobs(msgspec.Struct, array_like=True, gc=False):
    """Log-probabilities at one position, of the distribution before temperature and truncation (OpenAI's meaning)."""

    logprob: float  # of the token that was chosen
    rank: int  # 1 is the most likely
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(slots=True)
class Admitted:
    """A sequence that has just got its slot: what the runner needs to know of it once."""

    params: SamplingParams
    index: int
    prompt: list[int]
    generated: list[int]  # non-empty after a preemption
    grammar: Answer | None = None


class Row(msgspec.Struct, gc=False):  # one is made for every token, and of this kind in a third of the time
    """One sequence's part of a step: tokens to compute and where their keys and values go.

    The keys and values of token `i` of the row belong to position `start + i`, in block
    `table[(start + i) // block_size]`, where `table` is the slot's block table once `new_blocks` stand in it from
    `first_new_block` on. Nothing in a row depends on how often it was tried: a step that failed can be run again.

    `tokens` is None where the row is one token, the one that was sampled last in this slot: the runner has it, and the
    host need not know it yet.
    """

    slot: int
    start: int
    tokens: list[int] | None
    first_new_block: int  # 0 when `admitted` is set
    new_blocks: Sequence[int]
    samples: bool  # the last token's logits are sampled
    decodes: bool = False  # one token, to be computed the way generated ones are
    admitted: Admitted | None = None
    targets: list[int] | None = None  # prompt tokens whose log-probabilities are wanted: those after each of `tokens`

    @property
    def count(self) -> int:
        """How many tokens it computes."""
        return 1 if self.tokens is None else len(self.tokens)


@dataclass(slots=True)
class Step:
    """One forward pass. Rows that decode come first. `copies` (source, target) blocks are copied before anything."""

    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.rows) + sum(len(row.tokens) - 1 for row in self.rows if row.tokens is not None)


class RowResult(msgspec.Struct, gc=False):
    """What one row brought. `error` fails its sequence, and no other; `error_kind` says whose fault it is.

    `complete` without a token: its answer was at its end before.
    """

    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    error_kind: ErrorKind = "internal"
    complete: bool = False  # the grammar allows nothing after this token (or it is told late: LaunchedStep.ended)


Result = RowResult | int  # a row's; a token alone where there is nothing else to say, as nearly always


def in_full(result: Result) -> RowResult:
    """The same as a record."""
    return RowResult(result) if isinstance(result, int) else result


class Late(Protocol):
    """`LaunchedStep.ended`."""

    def __call__(self, *, wait: bool) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Computed:
    """A launched step whose results are there, but for what `late` tells, if anything: see `LaunchedStep.ended`."""

    rows: Sequence[Result]
    late: Late | None = None

    def results(self) -> Sequence[Result]:
        return self.rows

    def ended(self, *, wait: bool) -> Sequence[int]:
        return self.late(wait=wait) if self.late is not None else ()


class Unrecoverable(Exception):
    """A step that failed cannot be tried again: what the runner holds and what the host knows have parted."""
