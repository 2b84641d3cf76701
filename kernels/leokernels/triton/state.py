"""What choosing tokens needs to know of every slot, on the device: a row of each table belongs to a slot.

The host writes a slot's rows when a sequence gets it; from then on the kernels keep them up to date, so that a step
needs nothing of the host but which slots it is about. Uploads come from pinned memory and wait for nothing.

V ids, W = ceil(V / 32) words of one bit an id. At 256 slots and V = 32,128 (bytes a slot in brackets):

| table      | shape, dtype         | MiB           | written by                                               |
| ---------- | -------------------- | ------------- | -------------------------------------------------------- |
| numbers    | [slots, 6] float64   | 0.01 (48)     | set_slot                                                 |
| integers   | [slots, 5] int64     | 0.01 (40)     | set_slot; update_counts counts `MISSING` down            |
| banned     | [slots, W] int32     | 1.0 (4,016)   | set_slot and ban, where there are bans                   |
| stops      | [slots, W] int32     | 1.0 (4,016)   | set_slot, where min_tokens is not reached                |
| bias       | [slots, V] float32   | 31.4 (128,512)| set_slot, where there is a bias                          |
| history    | [slots, V] int32     | 31.4 (128,512)| set_slot, where there are penalties; update_counts       |
| last_token | [slots] int64        | 0.002 (8)     | sample                                                   |
| dead       | [W] int32            | 0.004         | once                                                     |

Together 65 MiB. The wide tables are read for the slots that use them, and only then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

# Below this a temperature is greedy: the division would leave float32's range.
GREEDY_BELOW = tl.constexpr(1e-5)

# Columns of `numbers`.
NUMBERS = tl.constexpr(6)
TEMPERATURE = tl.constexpr(0)  # 0: greedy
TOP_P = tl.constexpr(1)
MIN_P = tl.constexpr(2)
REPETITION = tl.constexpr(3)
FREQUENCY = tl.constexpr(4)
PRESENCE = tl.constexpr(5)

# Columns of `integers`.
INTEGERS = tl.constexpr(5)
SEED = tl.constexpr(0)  # the bits of an unsigned number
CHOICE = tl.constexpr(1)
TOP_K = tl.constexpr(2)  # V keeps all
MISSING = tl.constexpr(3)  # tokens until the slot's stops are allowed
EDITS = tl.constexpr(4)  # what changes its logits: a sum of the following

BANS = tl.constexpr(1)
BIAS = tl.constexpr(2)
PENALTIES = tl.constexpr(4)
STOPS = tl.constexpr(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSettings:
    """How a slot's tokens are chosen. Ids outside of the vocabulary have no effect."""

    seed: int = 0  # 0 .. 2**64 - 1
    choice: int = 0
    temperature: float = 1.0
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0  # over prompt and generated tokens
    frequency: float = 0.0  # over generated tokens, as is presence
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    allowed: Collection[int] | None = None  # None: all
    banned: Collection[int] = ()
    masked: bool = False  # `SamplingState.ban` will replace what is banned
    min_tokens: int = 0  # counted from the beginning; until then no id of `stops`
    stops: Collection[int] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW.value or self.top_k == 1 or self.top_p <= 0

    @property
    def edits(self) -> int:
        """The kinds of changes to the logits."""
        bans = self.masked or self.allowed is not None or len(self.banned) > 0
        penalties = self.repetition != 1.0 or self.frequency != 0 or self.presence != 0
        kinds = ((bans, BANS), (len(self.bias) > 0, BIAS), (penalties, PENALTIES), (len(self.stops) > 0, STOPS))
        return sum(bit.value for wanted, bit in kinds if wanted)


@dataclass(slots=True)
class SamplingState:
    """The tables of all slots; see above for their shapes."""

    numbers: Tensor
    integers: Tensor
    banned: Tensor
    stops: Tensor
    bias: Tensor
    history: Tensor  # 2 * how often the slot generated the id, + 1 if the id is in its prompt
    last_token: Tensor  # what was chosen last, the next step's input
    dead: Tensor  # ids that no token has
    any_id: int  # a valid one, for rows that cannot be sampled

    @classmethod
    def empty(cls, slots: int, vocab: int, dead: Collection[int], device: torch.device | str) -> SamplingState:
        """Tables of plain sampling in every slot. `dead` are the ids below `vocab` that no token has."""
        words = -(-vocab // 32)
        without = np.zeros(vocab, dtype=np.bool_)
        without[list(dead)] = True
        if without.all():
            raise ValueError("no id has a token")

        def table(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        state = cls(
            numbers=table(slots, NUMBERS.value, dtype=torch.float64),
            integers=table(slots, INTEGERS.value, dtype=torch.int64),
            banned=table(slots, words, dtype=torch.int32),
            stops=table(slots, words, dtype=torch.int32),
            bias=table(slots, vocab, dtype=torch.float32),
            history=table(slots, vocab, dtype=torch.int32),
            last_token=table(slots, dtype=torch.int64),
            dead=pack_bits(without).to(device),
            any_id=int(np.argmin(without)),
        )
        state.numbers[:] = torch.tensor(_numbers(SlotSettings()), dtype=torch.float64)
        state.integers[:] = torch.tensor(_integers(SlotSettings(), vocab, 0))
        return state

    @property
    def vocab(self) -> int:
        return self.bias.shape[1]

    def set_slot(self, slot: int, settings: SlotSettings, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Give `slot` to a sequence, as it stands after `generated`. What the slot held before is forgotten.

        Uploads 88 bytes, and what the settings make necessary: 4 KB a mask, 128 KB of bias, 8 bytes a token of the
        prompt and the answer for penalties.
        """
        edits = settings.edits
        _copy(self.numbers[slot], torch.tensor(_numbers(settings), dtype=torch.float64))
        _copy(self.integers[slot], torch.tensor(_integers(settings, self.vocab, len(generated))))
        if edits & BANS.value:
            banned = np.full(self.vocab, settings.allowed is not None)
            banned[_valid(settings.allowed or (), self.vocab)] = False
            banned[_valid(settings.banned, self.vocab)] = True
            self.ban(slot, pack_bits(banned))
        if edits & STOPS.value:
            stops = np.zeros(self.vocab, dtype=np.bool_)
            stops[_valid(settings.stops, self.vocab)] = True
            _copy(self.stops[slot], pack_bits(stops))
        if edits & BIAS.value:
            ids = _valid(settings.bias, self.vocab)
            bias = np.zeros(self.vocab, dtype=np.float32)
            bias[ids] = [settings.bias[token] for token in ids.tolist()]
            _copy(self.bias[slot], torch.from_numpy(bias))
        if edits & PENALTIES.value:
            self._set_history(slot, _valid(prompt, self.vocab), _valid(generated, self.vocab))

    def ban(self, slot: int, words: Tensor) -> None:
        """Ban the ids whose bits are set in `words` [W] int32 on the host (pack_bits), and no others.

        For a slot whose settings ban something or are `masked`; the dead ids are banned in any case.
        """
        _copy(self.banned[slot], words)

    def _set_history(self, slot: int, prompt: NDArray[np.int64], generated: NDArray[np.int64]) -> None:
        row = self.history[slot]
        row.zero_()
        if len(prompt):
            row.index_fill_(0, _upload(torch.from_numpy(np.unique(prompt)), row.device), 1)
        if len(generated):
            ids, counts = np.unique(generated, return_counts=True)
            twice = torch.from_numpy(2 * counts.astype(np.int32))
            row.index_add_(0, _upload(torch.from_numpy(ids), row.device), _upload(twice, row.device))


def pack_bits(flags: NDArray[np.bool_]) -> Tensor:
    """[V] bool -> [ceil(V / 32)] int32: id i is bit `i % 32` of word `i // 32`."""
    padded = np.zeros(-(-len(flags) // 32) * 32, dtype=np.bool_)
    padded[: len(flags)] = flags
    return torch.from_numpy(np.packbits(padded, bitorder="little").view("<i4").copy())


def _numbers(settings: SlotSettings) -> list[float]:
    """A row of `numbers`, in the order of its columns."""
    temperature = 0.0 if settings.greedy else settings.temperature
    penalties = [settings.repetition, settings.frequency, settings.presence]
    return [temperature, settings.top_p, settings.min_p, *penalties]


def _integers(settings: SlotSettings, vocab: int, generated: int) -> list[int]:
    """A row of `integers`, in the order of its columns."""
    seed = settings.seed - (1 << 64) if settings.seed >= 1 << 63 else settings.seed
    top_k = settings.top_k if 0 < settings.top_k < vocab else vocab
    missing = max(0, settings.min_tokens - generated) if len(settings.stops) else 0
    return [seed, settings.choice, top_k, missing, settings.edits]


def _valid(ids: Collection[int], vocab: int) -> NDArray[np.int64]:
    found = np.fromiter(ids, dtype=np.int64, count=len(ids))
    return found[(found >= 0) & (found < vocab)]


def _upload(values: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting; torch keeps pinned memory until the copy is done."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _copy(target: Tensor, values: Tensor) -> None:
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)
