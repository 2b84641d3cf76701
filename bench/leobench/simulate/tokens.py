"""Token ids that stand for a workload's texts: equal where texts are equal, and only there.

What a token is does not matter to scheduler and cache; only whether two prompts begin alike does.
"""

from __future__ import annotations

from hashlib import blake2b

from leobench.workloads import Planned, answer_name

IDS = 1 << 32  # the prefix index hashes ids of 32 bits


def segment(name: str, length: int) -> list[int]:
    """The ids of a text by its name. A shorter one of the same name is its beginning."""
    first = int.from_bytes(blake2b(name.encode(), digest_size=4).digest())
    if first + length <= IDS:
        return list(range(first, first + length))
    return [(first + place) % IDS for place in range(length)]


def prompt_ids(planned: Planned) -> list[int]:
    """The whole prompt: what it shares with others, then what is its own."""
    ids: list[int] = []
    for name, tokens in planned.prefix:
        ids += segment(name, tokens)
    length = planned.prompt_tokens or len(ids) or 1
    return ids[:length] + segment(f"own/{planned.index}", length - len(ids))


def answer_ids(planned: Planned) -> list[int]:
    """What will be generated. Later turns of the session repeat it under the same name."""
    if planned.session is None or planned.turn is None:
        return segment(f"answer/{planned.index}", planned.output_tokens)
    return segment(answer_name(planned.session, planned.turn), planned.output_tokens)
