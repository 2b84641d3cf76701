"""How much of a long prompt a step computes beside sequences that generate, so that none of them stutters.

A step takes as long as its rows that decode need, and on top so much for each prompt token. Both are measured while
serving: the first from steps without prompt tokens, the second from what other steps took beyond that. From the two
follows how many prompt tokens stretch a step to `stretch` times what it takes without (stall-free batching: Agrawal et
al., 2024, arXiv:2403.02310, which fixes the number beforehand by profiling).

Only prompts that take several steps anyway are cut smaller. A prompt that one step can hold is computed in one: cutting
it would delay its own answer by more than it delays others.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from leoserve.model.step import Step

FLOOR = 32  # tokens: less is hardly faster, and a prompt should come to its end
SAMPLES = 5  # of each measure; their median, since a step that the system interrupted says nothing
FRESH = 16  # of so many steps in a row one goes without long prompts, to measure those who generate by themselves


class Pace:
    """Measures steps, and bounds the tokens of long prompts in the next one."""

    def __init__(self, stretch: float) -> None:
        """`stretch`: how many times as long as a step that only decodes one may take that also has a long prompt."""
        self._stretch = stretch
        self._decoding: deque[float] = deque(maxlen=SAMPLES)  # seconds of steps without prompt tokens
        self._each: deque[float] = deque(maxlen=SAMPLES)  # seconds of a prompt token
        self._mixed = 0  # steps with prompt tokens since the last one without

    def tokens(self) -> int:
        """How many tokens of long prompts the next step may compute beside rows that decode; 0 to measure these."""
        if self._mixed % FRESH == FRESH - 1:
            return 0
        if not self._decoding or not self._each:
            return FLOOR
        room = (self._stretch - 1) * median(self._decoding)
        return max(FLOOR, int(room / max(median(self._each), 1e-9)))

    def note(self, step: Step, seconds: float) -> None:
        """A step took so long."""
        prompt_tokens = 0
        for row in reversed(step.rows):  # those that decode come first
            if row.decodes:
                break
            prompt_tokens += row.count
        if not prompt_tokens:
            self._mixed = 0
            self._decoding.append(seconds)
        else:
            self._mixed += 1
            if prompt_tokens >= FLOOR:
                alone = median(self._decoding) if self._decoding else 0.0
                self._each.append(max(0.0, seconds - alone) / prompt_tokens)
