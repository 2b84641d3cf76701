"""From the engine's tokens to what a client may see: text, calls, log-probabilities, ends. All endpoints share it.

Text that may yet become a call or a stop string is held back, and with it the tokens that it came from. Stop strings
are looked for in the text beside calls: what ends a sentence must not break JSON.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from leoserve.engine.request import TokenLogprobs, TokenOutput
from leoserve.text.calls import CallParser, CallPiece, Content, Piece
from leoserve.text.detokenize import Detokenizer
from leoserve.text.stop import StopStrings
from leoserve.text.tokenizer import Tokenizer
from leoserve.text.tools import Calling

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the tokens of one request become text.

    stop: the stop strings; include_stop: the stop string or token that ended the answer belongs to it
    min_tokens: before this many tokens stop strings are not looked for
    logprobs: how many alternatives to report beside each chosen token; None reports no tokens
    token_ids: report the tokens, and also those that the text does not show (of the stop string; the stop token)
    calling: the functions that the answer may call; None: all of it is text
    """

    stop: Sequence[str] = ()
    include_stop: bool = False
    skip_special: bool = True
    min_tokens: int = 0
    logprobs: int | None = None
    token_ids: bool = False
    calling: Calling | None = None


@dataclass(slots=True)
class Token:
    """One generated token. Its text is [start, end) of the answer's characters; empty for part of a character."""

    id: int
    start: int
    end: int
    logprobs: TokenLogprobs | None


@dataclass(slots=True)
class Delta:
    """What one output of the engine adds to a choice. `tokens`: those whose text is now certain, if asked for."""

    index: int
    first: bool = False
    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def only_text(self) -> bool:
        """Whether there is more text of an answer that has begun and goes on, and nothing else."""
        return bool(self.text) and not (self.first or self.calls or self.tokens or self.finish)


class Choice:
    """One answer in the making. `index` is the one that the client sees."""

    def __init__(self, index: int, tokenizer: Tokenizer, options: TextOptions, prompt: Sequence[int]) -> None:
        self.index = index
        self.options = options
        self.generated = 0  # tokens, also those not shown
        self.finish: Finish | None = None
        self.calls = 0  # that have begun
        self.logprob_sum = 0.0
        self.first_at = self.last_at = 0.0  # time.monotonic() of the first and the last tokens
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=options.skip_special, prompt_ids=prompt)
        self._stops = StopStrings(options.stop, include=options.include_stop) if options.stop else None
        self._parser = CallParser(options.calling.allowed) if options.calling is not None else None
        self._ends_at_call = options.calling is not None and options.calling.single
        self._keep_tokens = options.logprobs is not None or options.token_ids
        # Nothing to look for and no tokens to tell: all text is shown as it comes, and nobody needs its place.
        self._plain = self._stops is None and self._parser is None and not self._keep_tokens
        self._decoded = 0  # characters of text, also those held back
        self._shown = 0  # characters given out
        self._waiting: deque[Token] = deque()
        self._started = False

    @property
    def mean_logprob(self) -> float:
        return self.logprob_sum / max(self.generated, 1)

    def push(self, output: TokenOutput) -> Delta:
        """Take in an output that is not an error. Afterwards `finish` says whether the choice has ended."""
        delta = Delta(self.index, first=not self._started)
        self._started = True
        if self._plain and output.finish_reason is None and output.logprobs is None:
            self.generated += len(output.token_ids)
            delta.text = "".join([self._detokenizer.push(token) for token in output.token_ids])
            return delta
        for position, token in enumerate(output.token_ids):
            self.generated += 1
            logprobs = output.logprobs[position] if output.logprobs is not None else None
            if logprobs is not None:
                self.logprob_sum += logprobs.logprob
            is_stop = output.stop_token is not None and position == len(output.token_ids) - 1
            shown = not is_stop or self.options.include_stop
            self._add(delta, token, logprobs, shown)
            if delta.finish is not None:
                break
        if delta.finish is None and output.finish_reason is not None:
            self._end(delta, "length" if output.finish_reason == "length" else "stop")
        self.finish = delta.finish
        return delta

    def _add(self, delta: Delta, token: int, logprobs: TokenLogprobs | None, shown: bool) -> None:
        """Add one token; one that is not `shown` has no text."""
        text = self._detokenizer.push(token) if shown else ""
        start = self._decoded
        self._decoded += len(text)
        if self._keep_tokens and (shown or self.options.token_ids):
            self._waiting.append(Token(token, start, self._decoded, logprobs))
        self._show(delta, text, look_for_stops=self.generated >= self.options.min_tokens)

    def _show(self, delta: Delta, text: str, *, look_for_stops: bool = True) -> None:
        """Give out `text` as far as it is safe, and the tokens it completes. Sets `finish` at a stop string, or where
        the one call is complete that an answer may have."""
        before = self._shown
        if self._parser is None:
            self._give(delta, text, self._decoded, look_for_stops)
        else:
            for piece in self._parser.push(text):
                self._take(delta, piece, look_for_stops)
                if self._ends_at_call and isinstance(piece, CallPiece) and piece.complete:
                    delta.finish = "stop"
                if delta.finish is not None:
                    break
        if delta.finish is not None:
            self._release_all(delta)
        elif self._shown > before:
            while self._waiting and self._waiting[0].end <= self._shown:
                delta.tokens.append(self._waiting.popleft())

    def _take(self, delta: Delta, piece: Piece, look_for_stops: bool) -> None:
        if isinstance(piece, Content):
            self._give(delta, piece.text, piece.end, look_for_stops)
            return
        delta.text += self._flush_stops()  # no stop string goes on across a call
        delta.calls.append(piece)
        self.calls = piece.index + 1
        self._shown = piece.end

    def _give(self, delta: Delta, text: str, end: int, look_for_stops: bool) -> None:
        """Give out text beside calls, which ends at character `end` of the answer."""
        held = 0 if self._stops is None else self._stops.held
        begin = end - len(text) - held
        found = None
        if self._stops is not None and look_for_stops:
            text, found = self._stops.push(text)
        delta.text += text
        self._shown = begin + len(text)
        if found is not None:
            delta.finish = "stop"

    def _flush_stops(self) -> str:
        return "" if self._stops is None else self._stops.flush()

    def _end(self, delta: Delta, finish: Finish) -> None:
        """The engine ended the choice: what was held back is text after all, unless it completes a stop string."""
        rest = self._detokenizer.flush()
        if rest:
            self._decoded += len(rest)
            self._show(delta, rest)
        for piece in self._parser.flush() if self._parser is not None and delta.finish is None else ():
            self._take(delta, piece, look_for_stops=True)
            if delta.finish is not None:
                self._release_all(delta)
                break
        if delta.finish is None:
            delta.text += self._flush_stops()
            self._shown = self._decoded
            delta.finish = finish
            delta.tokens.extend(self._waiting)
            self._waiting.clear()

    def _release_all(self, delta: Delta) -> None:
        """The answer ends before its tokens do: those with a visible character, or all when ids were asked for."""
        for token in self._waiting:
            if token.start < self._shown or self.options.token_ids:
                delta.tokens.append(token)
        self._waiting.clear()
