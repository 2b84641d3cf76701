"""Between the thread that receives and the one that steps: requests with a grammar wait here until it is compiled.

Compiled in threads of its own, so that neither a step nor a refusal waits for a grammar, and before that in a process
of its own, which a grammar may exhaust; kept, for the same one usually comes again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, local

from leoserve.engine.admission import Admission
from leoserve.engine.loop import Constrained, ToLoop
from leoserve.engine.request import Abort, Refused, Request, ToEngine, TokenTable
from leoserve.engine.trial import Trial
from leoserve.model.grammar import CompiledGrammar, GrammarError, Grammars
from leoserve.model.parsers import PackagedParsers, Parsers, Spelling
from leoserve.model.step import Grammar

log = logging.getLogger("leoserve.engine")

KEPT = 128  # compiled grammars; each has some hundred kilobytes
THREADS = 2
Key = tuple[str, str]


class Compiling:
    """Passes messages on, those that are about a request with a grammar when it is compiled, in their order.

    `take` is called by one thread.
    """

    def __init__(
        self,
        submit: Callable[[ToLoop], None],
        send: Callable[[Refused], None],
        admission: Admission,
        parsers: Callable[[Spelling], Parsers] = PackagedParsers,
    ) -> None:
        """`parsers`: what is to follow the answers."""
        self._parsers = parsers
        self._submit = submit
        self._send = send
        self._admission = admission
        self._threads = ThreadPoolExecutor(THREADS, "grammars")
        self._grammars: Future[Grammars] | None = None
        self._table: TokenTable | None = None
        self._trials = local()  # each thread has one
        self._kept: OrderedDict[Key, Future[CompiledGrammar]] = OrderedDict()
        self._held: dict[str, list[Abort]] = {}  # requests that wait here, and what is to follow them
        self._lock = Lock()

    def take(self, message: ToEngine) -> None:
        """Take in the next message."""
        match message:
            case TokenTable():
                self._table = message
                self._grammars = self._threads.submit(Grammars, message, self._parsers)
            case Request():
                if message.params.grammar is None:
                    self._submit(message)
                else:
                    self._hold(message, message.params.grammar)
            case Abort():
                with self._lock:
                    following = self._held.get(message.request_id)
                    if following is not None:
                        following.append(message)
                        return
                self._submit(message)

    def _hold(self, request: Request, grammar: Grammar) -> None:
        with self._lock:
            self._held[request.request_id] = []
        compiled = self._compiled(grammar)
        compiled.add_done_callback(lambda done: self._release(request, grammar, done))

    def _compiled(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """The grammar, compiled or about to be."""
        key = (grammar.kind, grammar.source)
        with self._lock:
            found = self._kept.get(key)
            if found is None or _has_failed(found):
                found = self._kept[key] = self._threads.submit(self._compile, grammar)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        return found

    def _forget(self, grammar: Grammar) -> None:
        with self._lock:
            self._kept.pop((grammar.kind, grammar.source), None)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        """In one of the threads. Raises GrammarError."""
        if self._grammars is None or self._table is None:
            raise GrammarError("this server was started without what grammars need of a tokenizer")
        trial: Trial | None = getattr(self._trials, "trial", None)
        if trial is None:
            trial = self._trials.trial = Trial(self._table)
        trial.check(grammar)
        return self._grammars.result().compile(grammar)

    def _release(self, request: Request, grammar: Grammar, compiled: Future[CompiledGrammar]) -> None:
        """Pass a request on, or refuse it."""
        error = compiled.exception()
        with self._lock:
            following = self._held.pop(request.request_id)
            if error is None:
                self._submit(Constrained(request, compiled.result()))
                for abort in following:
                    self._submit(abort)
                return
        for index in range(request.params.n):
            self._admission.started(request, index)
        message = str(error)
        if not isinstance(error, GrammarError):
            log.error("compiling a grammar failed", exc_info=error)
            message = "the grammar could not be compiled"
            self._forget(grammar)  # it may have been the machine's fault
        self._send(Refused(request.request_id, "invalid_grammar", message, grammar.param))


def _has_failed(compiled: Future[CompiledGrammar]) -> bool:
    """Whether an answer of this grammar has."""
    return compiled.done() and compiled.exception() is None and compiled.result().failed
