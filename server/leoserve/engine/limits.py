"""Bounds of one step and of one sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one step and of one sequence. `max_tokens_per_step` is at least `max_sequences`.

    `prefill_stretch`: with a part of a long prompt a step takes at most so many times as long, while others generate.
    """

    max_sequences: int
    max_tokens_per_step: int
    max_model_len: int
    block_size: int
    prefix_caching: bool = True
    deterministic: bool = False
    prefill_stretch: float | None = None
