"""Answers that follow a grammar: which tokens may come next, told as a bit for each id.

llguidance does the parsing (parsers.py). Its work is bounded in counted operations rather than in time, so that what is
refused is refused on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import llguidance
import numpy as np
from numpy.typing import NDArray

from leoserve.model.parsers import Follower, PackagedParsers, Parser, Parsers, Spelling
from leoserve.model.schema import prepared
from leoserve.model.step import Grammar, GrammarKind, TokenTable

Words = NDArray[np.int32]

# Between the parts of a JSON text: a space, or a line break with its indentation. So a model that would fill its answer
# with white space cannot.
WHITE_SPACE = r"( |\n[ \t]{0,40})"
MAX_MESSAGE = 400  # characters


def limits(kind: GrammarKind) -> dict[str, int]:
    """Bounds on the work of a grammar: some hundred milliseconds to compile, some tens for the mask of one token.

    An object's optional properties, or the functions that may be called, are items of one row, four for each
    (schema.MAX_PROPERTIES). What a client writes by hand is smaller, and in it items may cost more.
    """
    own = kind == "grammar"
    return {
        "initial_lexer_fuel": 1_000_000,
        "step_lexer_fuel": 200_000,
        "step_max_items": 5_000 if own else 50_000,
        "max_items_in_row": 2_000 if own else 5_000,
        "max_lexer_states": 50_000,
        "max_grammar_size": 200_000,
    }


class GrammarError(Exception):
    """A grammar that cannot be compiled, or is too much work; the message says why."""


class Grammars:
    """Compiles grammars for one tokenizer. May be used by several threads; the GIL is free meanwhile."""

    def __init__(self, table: TokenTable, parsers: Callable[[Spelling], Parsers] = PackagedParsers) -> None:
        spelling = Spelling(table)
        self._parsers = parsers(spelling)
        self._words = -(-len(spelling.tokens) // 32)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises GrammarError."""
        try:
            source = _source(grammar)
        except ValueError as error:
            raise GrammarError(_brief(str(error))) from error
        except RecursionError:
            raise GrammarError("it is nested too deeply") from None
        parser = self._parsers.new(source, limits(grammar.kind))
        if parser.is_error():
            raise GrammarError(_brief(parser.get_error()))
        return CompiledGrammar(parser, self._words, self._parsers.follower)


class CompiledGrammar:
    """A grammar at its beginning. `words`: of a mask, 32 ids of the tokenizer each."""

    def __init__(self, parser: Parser, words: int, follower: Follower | None) -> None:
        self._parser = parser
        self.words = words
        self.follower = follower
        # One of its answers has: as they share a lexer, whose states and errors stay, none may get far from now on.
        self.failed = False

    def start(self, generated: Sequence[int] = ()) -> Matcher:
        """An answer of it, as it stands after the tokens `generated`."""
        matcher = Matcher(self, self._parser.deep_copy())
        for token in generated:
            matcher.advance(token)
        return matcher

    def answer(self) -> Answer:
        """One answer of it, from its beginning to its end."""
        return Answer(self)


class Answer:
    """What follows one answer from slot to slot: to lead a parser over its tokens again can be a lot of work."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar = grammar
        self._matcher: Matcher | None = None

    def start(self, generated: Sequence[int] = ()) -> Matcher:
        """It as it stands after these tokens, in a slot that it is new in. What was given before is not valid then."""
        if self._matcher is None or self._matcher.taken != len(generated):
            self._matcher = self._grammar.start(generated)
        self._matcher.leave()
        return self._matcher


class Mask:
    """One slot's row of words, and where it lies."""

    def __init__(self, words: Words) -> None:
        self.words = words  # [W], without gaps
        self.place = (words.ctypes.data, words.nbytes)


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, grammar: CompiledGrammar, parser: Parser) -> None:
        self.parser = parser
        self.words = grammar.words
        self.follower = grammar.follower  # what can move it on aside; None: nothing
        self._grammar = grammar
        self.taken = 0  # tokens
        self.whole = False  # as its follower has found
        self.mask: Mask | None = None

    def keep(self, mask: Mask) -> None:
        """Have this mask say what may come next, from now on and after each token."""
        if mask is not self.mask:
            self.mask = mask
            self._fill(mask)

    def leave(self) -> None:
        """Have nothing more to do with the mask."""
        self.mask = None

    def advance(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self.taken += 1
        self.parser.consume_token(token)
        # At once, while the parser's tables are in the processor's caches: after the next forward pass they are not.
        if self.mask is not None and not self.complete:
            self._fill(self.mask)

    def _fill(self, mask: Mask) -> None:
        if self.whole:
            return  # a parser is not asked again
        if not self.failed:
            self.parser.unsafe_compute_mask_ptr(*mask.place)
        if self.failed:
            mask.words[:] = 0  # of an answer that cannot go on nothing is allowed

    @property
    def complete(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return self.whole or (self.parser.is_stopped() and not self.parser.is_error())

    @property
    def failed(self) -> bool:
        return bool(self.parser.is_error())

    @property
    def error(self) -> str | None:
        """Why the answer cannot go on: following the grammar became too much work."""
        return _brief(self.parser.get_error()) if self.failed else None

    def give_up(self) -> None:
        """The answer ends because it cannot go on."""
        self._grammar.failed = True


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
