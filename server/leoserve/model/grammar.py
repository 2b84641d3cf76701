"""Answers that follow a grammar: which tokens may come next, told as a bit for each id.

llguidance does the parsing: an Earley parser over a lexer of regular-expression derivatives, walked along a trie of all
tokens (github.com/guidance-ai/llguidance). Its work is bounded in counted operations rather than in time, so that what
is refused is refused on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import llguidance
import numpy as np
from numpy.typing import NDArray

from leoserve.model.schema import prepared
from leoserve.model.step import Grammar, GrammarKind, TokenTable

Words = NDArray[np.int32]

# Between the parts of a JSON text: a space, or a line break with its indentation. So a model that would fill its answer
# with white space cannot.
WHITE_SPACE = r"( |\n[ \t]{0,40})"
MAX_MESSAGE = 400  # characters
MAX_FORCED = 200  # bytes of a text without a choice that are spelled ahead


def limits(kind: GrammarKind) -> llguidance.LLParserLimits:
    """Bounds on the work of a grammar: some hundred milliseconds to compile, some tens for the mask of one token.

    An object's optional properties, or the functions that may be called, are items of one row, four for each
    (schema.MAX_PROPERTIES). What a client writes by hand is smaller, and in it items may cost more.
    """
    own = kind == "grammar"
    return llguidance.LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=5_000 if own else 50_000,
        max_items_in_row=2_000 if own else 5_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class GrammarError(Exception):
    """A grammar that cannot be compiled, or is too much work; the message says why."""


class Grammars:
    """Compiles grammars for one tokenizer. May be used by several threads; the GIL is free meanwhile."""

    def __init__(self, table: TokenTable) -> None:
        spelling = Spelling(table)
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(spelling), eos_token=spelling.ends)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises GrammarError."""
        try:
            source = _source(grammar)
        except ValueError as error:
            raise GrammarError(_brief(str(error))) from error
        except RecursionError:
            raise GrammarError("it is nested too deeply") from None
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=limits(grammar.kind))
        if matcher.is_error():
            raise GrammarError(_brief(matcher.get_error()))
        return CompiledGrammar(matcher, -(-self._tokenizer.vocab_size // 32))


class CompiledGrammar:
    """A grammar at its beginning. `words`: of a mask, 32 ids of the tokenizer each."""

    def __init__(self, matcher: llguidance.LLMatcher, words: int) -> None:
        self._matcher = matcher
        self._words = words

    def start(self, generated: Sequence[int] = ()) -> Matcher:
        """An answer of it, as it stands after the tokens `generated`."""
        matcher = Matcher(self._matcher.deep_copy(), self._words)
        for token in generated:
            matcher.advance(token)
        return matcher


class Mask:
    """One slot's row of words, and where it lies."""

    def __init__(self, words: Words) -> None:
        self.words = words  # [W], without gaps
        self.place = (words.ctypes.data, words.nbytes)


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, words: int) -> None:
        self.inner = matcher
        self.words = words
        self._mask: Mask | None = None

    def keep(self, mask: Mask) -> None:
        """Have this mask say what may come next, from now on and after each token."""
        if mask is not self._mask:
            self._mask = mask
            self.inner.unsafe_compute_mask_ptr(*mask.place)

    def advance(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self.inner.consume_token(token)
        # At once, while the parser's tables are in the processor's caches: after the next forward pass they are not.
        if self._mask is not None and not self.inner.is_stopped():
            self.inner.unsafe_compute_mask_ptr(*self._mask.place)

    @property
    def complete(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return self.inner.is_stopped() and not self.inner.is_error()

    @property
    def failed(self) -> bool:
        return bool(self.inner.is_error())

    @property
    def error(self) -> str | None:
        """Why the answer cannot go on: following the grammar became too much work."""
        return _brief(self.inner.get_error()) if self.inner.is_error() else None


class Masks:
    """The masks of a step's answers.

    Where a device computes the step they are made aside, in other threads. Where the processor does it itself, all its
    cores are at work already: a thread more would hold up the product that it meets for longer than a mask takes, and
    they are made between two steps, each when its matcher moves on.
    """

    def __init__(self, slots: int, vocab: int, *, aside: bool) -> None:
        self.vocab = vocab
        self._slots = slots
        self._aside = aside
        self._words: Words = np.zeros((slots, 0), dtype=np.int32)  # as wide as the tokenizer is, once that is known
        self._masks: list[Mask] = []  # by slot
        self._executor: llguidance.LLExecutor | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._filling: Future[None] | None = None

    def begin(self, matchers: Sequence[tuple[int, Matcher]]) -> None:
        """The masks of slots with these matchers will be needed. Until `words` nobody may move the matchers on."""
        if not matchers:
            return
        if not self._words.shape[1]:  # most servers never need them
            self._words = np.zeros((self._slots, matchers[0][1].words), dtype=np.int32)
            self._masks = [Mask(row) for row in self._words]
        missing = []
        for slot, matcher in matchers:
            if matcher.failed:
                self._words[slot] = 0  # of an answer that cannot go on nothing is allowed
            elif self._aside:
                missing.append((matcher.inner, slot))
            else:
                matcher.keep(self._masks[slot])
        if missing:
            self._start(missing)

    def _start(self, rows: list[tuple[llguidance.LLMatcher, int]]) -> None:
        if self._executor is None or self._thread is None:
            self._executor, self._thread = llguidance.LLExecutor(), ThreadPoolExecutor(1, "masks")
        fill, (at, size) = self._executor.unsafe_compute_mask_ptr, self._masks[0].place
        self._filling = self._thread.submit(fill, rows, at, size, len(self._words))

    def words(self) -> Words:
        """[slots, W]: id i may come next in a slot if bit `i % 32` of word `i // 32` is set. Waits for the masks."""
        if self._filling is not None:
            self._filling.result()
            self._filling = None
        return self._words

    def allowed_flags(self, slot: int) -> NDArray[np.bool_]:
        """[vocab]: what may come next in a slot, a flag for each id."""
        bits = np.unpackbits(self.words()[slot].view(np.uint8), bitorder="little")[: self.vocab].view(np.bool_)
        flags = np.zeros(self.vocab, dtype=np.bool_)  # rows of the network that have no token stay out
        flags[: len(bits)] = bits
        return flags


class Spelling:
    """A tokenizer for llguidance: the bytes of its tokens, and a way to spell what a grammar leaves no choice about.

    That takes the longest token each time, without a regard for merges: what comes before is not known here.
    """

    def __init__(self, table: TokenTable) -> None:
        self.tokens = list(table.pieces)
        self.special_token_ids = list(table.control)
        self.ends = list(table.ends)
        if not self.ends:  # one that the network has no row for, so that no answer is ended by it
            self.ends = [len(self.tokens)]
            self.special_token_ids += self.ends
            self.tokens.append(b"<end>")
        self.eos_token_id = self.ends[0]
        self.bos_token_id = None
        control = set(self.special_token_ids)
        self._ids = {piece: token for token, piece in enumerate(self.tokens) if piece and token not in control}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        start, end = 0, min(len(text), MAX_FORCED)
        while start < end:
            sizes = range(min(self._longest, len(text) - start), 0, -1)
            pieces = (text[start : start + size] for size in sizes)
            token = next((self._ids[piece] for piece in pieces if piece in self._ids), None)
            if token is None:
                break
            ids.append(token)
            start += len(self.tokens[token])
        return ids


def _source(grammar: Grammar) -> str:
    """As llguidance takes it. Raises ValueError."""
    if grammar.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "lark":
        return llguidance.grammar_from("lark", _with_prepared(grammar.source))
    if grammar.kind == "grammar":
        return llguidance.grammar_from("grammar", _with_prepared(grammar.source))  # tells GBNF by its "::="
    return llguidance.LLMatcher.grammar_from_json_schema(
        json.dumps(prepared(json.loads(grammar.source))),
        overrides={"whitespace_flexible": True, "whitespace_pattern": WHITE_SPACE, "lenient": False},
    )


# Of a grammar in Lark's notation: a text, a comment, a regular expression, or what a schema follows.
_LARK = re.compile(r'"(?:\\.|[^"\\\n])*"|(?://|#)[^\n]*|/(?:\\.|[^/\\\n])+/|%json\b\s*')


def _with_prepared(source: str) -> str:
    """A grammar in Lark's notation, the schemas in it as the engine takes them. Raises ValueError."""
    told, at = [], 0
    decoder = json.JSONDecoder()
    while (match := _LARK.search(source, at)) is not None:
        told.append(source[at : match.end()])
        at = match.end()
        if match[0].startswith("%json"):
            schema, at = decoder.raw_decode(source, at)
            ready = prepared(schema)
            if isinstance(schema, dict) and "x-guidance" in schema:  # how calls are spaced, or its author's choice
                ready["x-guidance"] = schema["x-guidance"]
            told.append(json.dumps(ready))
    return "".join(told) + source[at:]


def _brief(message: str) -> str:
    """The first line of a message, which the parser's state may follow."""
    return (message.strip().splitlines() or ["unknown error"])[0][:MAX_MESSAGE]
