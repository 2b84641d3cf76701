"""The runner of a GPU: `launch` returns while the device computes, and nothing in a step waits for it.

What a slot needs stays on the device: its block table, its last token, its sampling parameters and counts. A step
uploads, in one copy from pinned memory, what is new: slots and positions, prompt tokens, blocks. A sampled token goes
from the sampler's table straight into the next step; the host reads it later, from pinned memory, behind an event.

Steps of decode rows alone replay a CUDA graph (graphs.py); steps with prompt tokens are launched kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leokernels import AttentionMetadata
from leokernels.triton.attention import WORKSPACE, Workspace
from leokernels.triton.logits import process_logits
from leokernels.triton.logprobs import Logprobs, gather_logprobs
from leokernels.triton.sampling import NOTHING_LEFT as CODE_NOTHING_LEFT
from leokernels.triton.sampling import sample, update_counts
from leokernels.triton.state import SamplingState
from leoserve.model.graphs import PADDING, DecodeGraphs, Recorder
from leoserve.model.llama import Llama
from leoserve.model.sampler import GRAMMAR_FAILED, NOT_FINITE, NOTHING_LEFT
from leoserve.model.slots import SlotEdits
from leoserve.model.step import Result, Row, RowResult, Step, TokenLogprobs, Unrecoverable, in_full

Int32 = NDArray[np.int32]
LOGITS_PER_PASS = 64  # rows of logits that a scored prompt holds at a time


class Event(Protocol):
    """The end of what was launched so far."""

    def synchronize(self) -> object: ...


@dataclass(slots=True)
class Sampling:
    """What was launched for the rows that sample, on its way to the host."""

    numbers: list[int]  # of the rows among the step's
    tokens: Tensor  # [n] int64
    failed: Tensor  # [n] int32
    logprobs: Logprobs | None
    counts: list[int]  # most likely tokens asked for; -1: no log-probabilities


@dataclass(slots=True)
class DeviceStep:
    """A step on the device. Its tensors are on the host, and hold their values once `done` has come."""

    runner: DeviceRunner
    rows: list[Row]
    sampling: Sampling | None
    scored: list[tuple[int, Logprobs, int, int]]  # number of the row, most likely ones of its targets, how many of each
    done: Event

    def ended(self, *, wait: bool) -> Sequence[int]:
        return ()

    def results(self) -> list[Result]:
        """Wait for the step; see engine.loop.LaunchedStep."""
        self.done.synchronize()
        results: list[Result] = [RowResult() for _ in self.rows]
        if self.sampling is not None:
            tokens, failed = self.sampling.tokens.tolist(), self.sampling.failed.tolist()
            for place, number in enumerate(self.sampling.numbers):
                slot = self.rows[number].slot
                results[number] = self._found(self.sampling, place, slot, tokens[place], failed[place])
        for number, logprobs, count, rows in self.scored:
            result = results[number] = in_full(results[number])
            entries = [token_logprobs(logprobs, place, count) for place in range(rows)]
            result.prompt_logprobs = (result.prompt_logprobs or []) + entries
        return results

    def _found(self, sampling: Sampling, place: int, slot: int, token: int, failed: int) -> Result:
        """What was sampled for the row at this place among those that sample."""
        edits, count = self.runner.edits, sampling.counts[place]
        logprobs = None
        if count >= 0 and sampling.logprobs is not None:
            logprobs = token_logprobs(sampling.logprobs, place, count)
        if (fault := edits.fault(slot)) is not None:
            return RowResult(token, logprobs, error=f"{GRAMMAR_FAILED}: {fault}", error_kind="grammar")
        if failed == CODE_NOTHING_LEFT:
            return RowResult(token, logprobs, error=NOTHING_LEFT, error_kind="invalid")
        if failed or (logprobs is not None and not logprobs.rank):
            return RowResult(token, error=NOT_FINITE)
        complete = edits.add(slot, token)
        return RowResult(token, logprobs, complete=complete) if complete or logprobs is not None else token


def token_logprobs(logprobs: Logprobs, place: int, count: int) -> TokenLogprobs:
    """One row of downloaded log-probabilities."""
    rank = int(logprobs.rank[place])
    shown = count if rank else 0
    return TokenLogprobs(
        float(logprobs.logprob[place]),
        rank,
        logprobs.top_ids[place, :shown].tolist(),
        logprobs.top_logprobs[place, :shown].tolist(),
    )


class DeviceRunner:
    """A network with Triton's kernels, its paged cache, and the state of every slot, all on one device."""

    def __init__(
        self,
        model: Llama,
        state: SamplingState,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        self.model = model
        self.state = state
        self.device = model.device
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.width = -(-max_model_len // block_size)
        self.tables = torch.zeros(max_num_seqs, self.width, dtype=torch.int32, device=self.device)
        self.edits = SlotEdits(state, max_num_seqs)
        self.key_value = model.new_cache(num_blocks, block_size)
        self.workspace = Workspace.new(
            max_num_seqs,
            model.config.num_heads,
            model.config.head_dim,
            max_context=max_model_len,
            window=model.config.sliding_window,
            device=self.device,
        )
        self._starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=self.device)
        self._graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def record(self, recorder: Recorder) -> DecodeGraphs:
        """Record the decode steps. Slots and cache may hold anything: padding rows read and write nothing."""
        self._graphs = DecodeGraphs(
            self._decode,
            largest=self.max_num_seqs,
            vocab_size=self.model.config.vocab_size,
            device=self.device,
            recorder=recorder,
        )
        return self._graphs

    @torch.inference_mode()
    def launch(self, step: Step) -> DeviceStep:
        """Start computing a step. See engine.loop.StepRunner."""
        self._update_slots(step)
        sampled = [number for number, row in enumerate(step.rows) if row.samples]
        hidden: Tensor | None = None
        logits: Tensor | None = None
        if all(row.tokens is None and row.samples for row in step.rows):
            logits = self._replay_or_decode(step.rows)
        else:
            hidden = self._forward(step)
            ends = np.cumsum([row.count for row in step.rows], dtype=np.int32)[sampled] - 1
            if sampled:
                logits = self.model.logits(hidden[self._upload(ends).long()])
        scored = self._score_prompts(step, hidden) if hidden is not None else []
        sampling = self._sample(step.rows, sampled, logits) if logits is not None else None
        return DeviceStep(self, step.rows, sampling, scored, self._mark())

    def _update_slots(self, step: Step) -> None:
        """Bring block tables and parameters up to date: what is new is uploaded, everything else is there."""
        if step.copies:
            sources, targets = self._upload(np.array(step.copies, dtype=np.int32).T.copy()).long()
            for layer in self.key_value:
                layer.copy_blocks(sources, targets)
        places = [
            row.slot * self.width + row.first_new_block + offset
            for row in step.rows
            for offset in range(len(row.new_blocks))
        ]
        if places:
            blocks = [block for row in step.rows for block in row.new_blocks]
            where, what = self._upload(np.array([places, blocks], dtype=np.int32))
            self.tables.view(-1).index_copy_(0, where.long(), what)
        for row in step.rows:
            if row.admitted is not None:
                self.edits.set_slot(row.slot, row.admitted)
        self.edits.begin([row.slot for row in step.rows if row.samples])

    def _replay_or_decode(self, rows: list[Row]) -> Tensor:
        """Logits [rows, vocab_size] of a step in which every row is one token that the device knows."""
        size = self._graphs.size_for(len(rows)) if self._graphs is not None else None
        inputs: Int32 = np.full((2, size or len(rows)), PADDING, dtype=np.int32)
        inputs[0, : len(rows)] = [row.slot for row in rows]
        inputs[1, : len(rows)] = [row.start for row in rows]
        if self._graphs is not None and size is not None:
            return self._graphs.replay(self._pinned(inputs), size)[: len(rows)]
        slots, positions = self._upload(inputs)
        return self._decode(slots, positions, [row.start + 1 for row in rows])

    def _decode(self, slots: Tensor, positions: Tensor, contexts: list[int] | None = None) -> Tensor:
        """One token of each slot: slots and positions [P] int32, -1 for padding -> logits [P, vocab_size] float32.

        `contexts` are the lengths on the host, where they are known: a recording is replayed at any length.
        """
        count = slots.shape[0]
        lengths = contexts or [self.max_model_len] * count
        slot, position = slots.long().clamp_min(0), positions.long().clamp_min(0)
        table = self.tables.index_select(0, slot)
        block = table.gather(1, (position // self.block_size)[:, None]).squeeze(1).long()
        place = block * self.block_size + position % self.block_size
        metadata = AttentionMetadata(
            num_decode=count,
            query_start=self._starts[: count + 1],
            context_len=positions + 1,
            block_table=table,
            slot_mapping=torch.where(positions < 0, PADDING, place),
            query_lens=[1] * count,
            context_lens=lengths,
            max_query=1,
            max_context=max(lengths),
            plans={WORKSPACE: self.workspace},
        )
        hidden = self.model.forward(self.state.last_token[slot], position, self.key_value, metadata)
        return self.model.logits(hidden)

    def _forward(self, step: Step) -> Tensor:
        """Hidden states [T, hidden_size] of a step with prompt tokens."""
        rows = step.rows
        counts = np.array([row.count for row in rows], dtype=np.int32)
        starts = np.array([row.start for row in rows], dtype=np.int32)
        query_start: Int32 = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(counts, out=query_start[1:])
        row_of_token = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        positions = np.arange(query_start[-1], dtype=np.int32) - query_start[row_of_token] + starts[row_of_token]
        known = np.array([token for row in rows for token in (row.tokens or (PADDING,))], dtype=np.int32)
        slots = np.array([row.slot for row in rows], dtype=np.int32)
        contexts = starts + counts
        parts = [known, positions, row_of_token, query_start, contexts, slots]
        packed = torch.split(self._upload(np.concatenate(parts)), [len(part) for part in parts])
        tokens, position, row, slot = (packed[place].long() for place in (0, 1, 2, 5))
        table = self.tables.index_select(0, slot)
        last = self.state.last_token[slot]
        metadata = AttentionMetadata(
            num_decode=sum(row.decodes for row in rows),
            query_start=packed[3],
            context_len=packed[4],
            block_table=table,
            slot_mapping=table[row, position // self.block_size].long() * self.block_size + position % self.block_size,
            query_lens=counts.tolist(),
            context_lens=contexts.tolist(),
            max_query=int(counts.max()),
            max_context=int(contexts.max()),
            plans={WORKSPACE: self.workspace},
        )
        tokens = torch.where(tokens < 0, last[row], tokens)
        return self.model.forward(tokens, position, self.key_value, metadata)

    def _sample(self, rows: list[Row], numbers: list[int], logits: Tensor) -> Sampling:
        """Choose the next token of the rows with these numbers from their logits, and send it on its way."""
        chosen = [rows[number] for number in numbers]
        for row in chosen:
            self.edits.ban(row.slot)  # here, where the device is at work on the logits
        counts = [self.edits.logprobs(row.slot) for row in chosen]
        inputs = np.array(
            [[row.slot for row in chosen], [row.start + row.count for row in chosen], counts], dtype=np.int32
        )
        slots, positions, asked = self._upload(inputs)
        wanted = max(counts) >= 0
        edited = process_logits(logits, slots, self.state, None if wanted else logits)
        try:
            sampled = sample(edited, slots, positions.long(), self.state)
            update_counts(sampled, slots, self.state)
            logprobs = None
            if wanted:
                found = gather_logprobs(logits, sampled.tokens, asked, self.state.dead, max(1, *counts))
                logprobs = Logprobs(*map(self._download, found))
            return Sampling(numbers, self._download(sampled.tokens), self._download(sampled.failed), logprobs, counts)
        except Exception as error:  # the slots' last tokens and counts are ahead of what the host will ever hear
            raise Unrecoverable("a step failed while its tokens were chosen") from error

    def _score_prompts(self, step: Step, hidden: Tensor) -> list[tuple[int, Logprobs, int, int]]:
        """Log-probabilities of prompt tokens, for the rows that want them."""
        scored = []
        begin = 0
        for number, row in enumerate(step.rows):
            for start in range(0, len(row.targets or ()), LOGITS_PER_PASS):
                targets = (row.targets or [])[start : start + LOGITS_PER_PASS]
                logits = self.model.logits(hidden[begin + start : begin + start + len(targets)])
                count = self.edits.prompt_logprobs(row.slot)
                inputs = self._upload(np.array([targets, [count] * len(targets)], dtype=np.int32))
                found = gather_logprobs(logits, inputs[0].long(), inputs[1], self.state.dead, max(1, count))
                scored.append((number, Logprobs(*map(self._download, found)), count, len(targets)))
            begin += row.count
        return scored

    def _pinned(self, values: Int32) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _upload(self, values: Int32) -> Tensor:
        """To the device without waiting: torch keeps the pinned memory until the copy is done."""
        return self._pinned(values).to(self.device, non_blocking=True)

    def _download(self, values: Tensor) -> Tensor:
        """To pinned memory of the host without waiting; to be read after the step's event."""
        if self.device.type != "cuda":
            return values.clone()
        return torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)

    def _mark(self) -> Event:
        if self.device.type != "cuda":
            return Immediately()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event


def device_runners(
    model: Llama, token_ranges: list[tuple[int, int]], *, block_size: int, max_num_seqs: int, max_model_len: int
) -> Callable[[int], DeviceRunner]:
    """Makes runners of this network, from a number of blocks. Their sampling state is made once."""
    vocab = model.config.vocab_size
    alive = {token for start, stop in token_ranges for token in range(start, stop)}
    state = SamplingState.empty(max_num_seqs, vocab, set(range(vocab)) - alive, model.device)

    def make(num_blocks: int) -> DeviceRunner:
        return DeviceRunner(
            model,
            state,
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
        )

    return make


class Immediately:
    """The event of a device that has computed everything when a launch returns."""

    def synchronize(self) -> None:
        return None
