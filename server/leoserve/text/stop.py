"""Stop strings: find them in text that arrives in pieces, without showing any part of one.

Each stop string is followed by its Knuth-Morris-Pratt automaton (SIAM Journal on Computing 6(2), 1977), so that a push
costs time proportional to the new text, whatever was held back and however the stop strings repeat themselves.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The stop strings of one choice.

    The match that is complete first wins; of several complete at the same character, the longest. The text ends before
    that match, or after it with `include`.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`stops`: none of them empty (ValueError). `include`: the stop string belongs to the text."""
        if any(not stop for stop in stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(sorted(set(stops), key=len, reverse=True))  # longest first, so that it wins a draw
        self._failures = [_failure_links(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # how many characters of each stop string the text ends with
        self._first = frozenset(stop[0] for stop in self._stops)
        self._include = include
        self._held = ""  # the end of the text that may yet become a stop string
        self._pending = 0  # characters of the longest partial match
        self._found: str | None = None

    @property
    def found(self) -> str | None:
        """The stop string that ended the text."""
        return self._found

    @property
    def held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def push(self, text: str) -> tuple[str, str | None]:
        """New text; returns (text that is safe to send, the stop string that matched or None).

        After a match nothing more is returned but the same stop string.
        """
        if self._found is not None:
            return "", self._found
        if not self._pending and self._first.isdisjoint(text):
            return text, None
        for position, character in enumerate(text):
            stop = self._advance(character)
            if stop is not None:
                return self._end(text[: position + 1], stop), stop
        text = self._held + text
        self._pending = max(self._matched, default=0)
        sent = len(text) if self._include else len(text) - self._pending  # a match that is shown need not be held
        self._held = text[sent:]
        return text[:sent], None

    def flush(self) -> str:
        """The text held back, when the generation ended without a stop string."""
        held, self._held, self._pending = self._held, "", 0
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> str | None:
        """Move every automaton over one character; returns the longest stop string that it completes."""
        for number, stop in enumerate(self._stops):
            matched, links = self._matched[number], self._failures[number]
            while matched and stop[matched] != character:
                matched = links[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                return stop
            self._matched[number] = matched
        return None

    def _end(self, text: str, stop: str) -> str:
        self._found = stop
        text, self._held = self._held + text, ""
        return text if self._include else text[: len(text) - len(stop)]


def _failure_links(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its suffix."""
    links = [0] * len(stop)
    length = 0
    for position in range(1, len(stop)):
        while length and stop[position] != stop[length]:
            length = links[length - 1]
        if stop[position] == stop[length]:
            length += 1
        links[position] = length
    return links
