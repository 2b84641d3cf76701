"""Exact selection over the vocabulary without sorting it: the most likely token, the top k, a nucleus, a draw.

The order is total everywhere: by value, and among equal values the lower id first. Every result is therefore a
function of its row alone, and the same on every device, whatever rows are beside it and whatever k they ask for.
Sums are taken in float64, where adding float32 probabilities is exact but for the very small ones.

Rows are read in blocks of `WIDTH` ids. A block's maximum or sum costs one pass at memory speed, and what follows
needs to look only at the few blocks that matter.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

WIDTH = 64
# How many of the most likely tokens are tried before the whole row is looked at. It covers the usual top_k, and at
# usual temperatures the nucleus of most positions.
CANDIDATES = 64
# Whole passes make several float64 and int64 copies of the rows: as many rows at a time as stay in a CPU's cache.
ROWS_PER_PASS = 16
LOW = 0xFFFFFFFF
MOST_NEAR = 8  # times as many as are wanted

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def in_blocks(values: Tensor, filler: float) -> Tensor:
    """[R, V] as [R, ceil(V / WIDTH), WIDTH], the last block filled up; a view where V is a multiple of WIDTH."""
    rows, vocab = values.shape
    if vocab % WIDTH:
        values = pad(values, (0, -vocab % WIDTH), value=filler)
    return values.reshape(rows, -1, WIDTH)


def argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row of [R, V] and the lowest id that has it; NaN where a row has one."""
    if values.device.type == "cpu":  # numpy's runs through a row at the speed of memory, torch's at a tenth of it
        array = values.numpy()
        found = array.argmax(1)
        return torch.from_numpy(array[np.arange(len(found)), found]), torch.from_numpy(found)
    blocks = in_blocks(values, -torch.inf)
    peak, block = blocks.amax(2).max(1)
    lane = _block_of(blocks, block).argmax(1)
    return peak, block * WIDTH + lane


def top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of [R, V] float32, without NaN, in order: values and ids, both [R, count].

    They lie in the `count` blocks whose maxima are the largest (among equal maxima the first blocks), because each of
    those blocks has an element that comes before every element of the other blocks.
    """
    rows, vocab = values.shape
    if values.device.type == "cpu" and count <= vocab:
        quick = _top_on_cpu(values, count)
        if quick is not None:
            return quick
    blocks = in_blocks(values, -torch.inf)
    if count < blocks.shape[1]:
        chosen = _largest(blocks.amax(2), None, count)
        ids = (chosen[:, :, None] * WIDTH + torch.arange(WIDTH, device=values.device)).reshape(rows, -1)
        near = blocks.gather(1, chosen[:, :, None].expand(-1, -1, WIDTH)).reshape(rows, -1)
        found = _largest(near, ids, count)
    else:
        found = _largest(values, None, min(count, vocab))
    return values.gather(1, found), found


def _top_on_cpu(values: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """The same in numpy, in a third of the time; None where so many are equal that it would be slow.

    What is at least the `count`-th largest maximum of a block is looked at: most of it is of the `count` largest.
    """
    rows, vocab = values.shape
    blocks = in_blocks(values, -torch.inf)
    peaks = blocks.amax(2).numpy() if count < blocks.shape[1] else values.numpy()
    last = peaks.shape[1] - count
    least = np.partition(peaks, last, axis=1)[:, last, None]
    flat = values.numpy().ravel()
    near = np.flatnonzero(values.numpy() >= least)
    if len(near) > MOST_NEAR * count * rows:
        return None
    row, ids = np.divmod(near, vocab)
    column = np.arange(len(near)) - np.searchsorted(row, np.arange(rows))[row]
    keys = np.full((rows, int(column.max()) + 1), np.iinfo(np.int64).min)
    keys[row, column] = _keys(torch.from_numpy(flat[near]), torch.from_numpy(ids)).numpy()
    keys.sort(axis=1)
    found = torch.from_numpy(LOW - (keys[:, : -count - 1 : -1] & LOW))
    return values.gather(1, found), found


def _block_of(blocks: Tensor, block: Tensor) -> Tensor:
    """Of [R, B, WIDTH] the block [R] of each row: [R, WIDTH]."""
    return blocks.gather(1, block[:, None, None].expand(-1, 1, WIDTH)).squeeze(1)


def _largest(values: Tensor, ids: Tensor | None, count: int) -> Tensor:
    """The ids [R, count] of the largest of [R, N], in order. `ids` names the columns where they are not 0 .. N-1."""
    if ids is None:
        ids = torch.arange(values.shape[1], device=values.device)
    return LOW - (_keys(values, ids).topk(count, 1).values & LOW)


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 that sort like the values, and among equal ones the lower id above the higher.

    A float's bits, the sign folded, sort like the float. With the inverted id below them no two keys are equal, so what
    promises nothing about equal values, such as `topk`, has only one possible answer.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes of -0.0 the 0.0 it is equal to
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) + (LOW - ids)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution in the order of ids: weights [R, V] >= 0, [R] float64 in [0, 1) -> ids [R].

    The first id whose cumulative weight exceeds uniform * total. An id of weight 0 is never drawn. Every row needs a
    positive weight.
    """
    blocks = in_blocks(weights, 0.0)
    cumulative = pad(blocks.sum(2, dtype=torch.float64).cumsum(1), (1, 0))
    target = _below(uniform[:, None] * cumulative[:, -1:], cumulative[:, -1:])
    block = (cumulative[:, 1:] <= target).sum(1)
    inside = _block_of(blocks, block).double().cumsum(1)
    rest = _below(target - cumulative.gather(1, block[:, None]), inside[:, -1:])
    return block * WIDTH + (inside <= rest).sum(1)


def _below(target: Tensor, limit: Tensor) -> Tensor:
    """`target`, or where rounding took it to `limit` or beyond, the number just below."""
    return torch.minimum(target, torch.nextafter(limit, torch.zeros_like(limit)))


class Truncation:
    """min_p, then top_k, then top_p, of S rows; parameters on the device, each [S].

    - min_p keeps what is at least min_p times as likely as the most likely token; 0 keeps all.
    - top_k keeps exactly the k most likely; the vocabulary's size keeps all.
    - top_p keeps the fewest most likely ones that together have at least top_p of the mass that is left by then, and
      always one; 1 keeps all.
    """

    def __init__(self, top_k: Tensor, top_p: Tensor, min_p: Tensor, vocab: int) -> None:
        self.top_k = top_k  # int64
        self.top_p = top_p  # float64
        self.min_p = min_p  # float64
        self.vocab = vocab

    def of(self, rows: Tensor) -> Truncation:
        return Truncation(self.top_k[rows], self.top_p[rows], self.min_p[rows], self.vocab)

    @property
    def _limited(self) -> Tensor:
        """Rows of which top_p sees what min_p or top_k left, not the whole distribution."""
        return (self.top_k < self.vocab) | (self.min_p > 0)

    def sample(self, probabilities: Tensor, uniform: Tensor) -> Tensor:
        """Draw from [S, V] float32 probabilities, each row summing to 1, with `uniform` [S] float64: ids [S]."""
        ids, weights, covered = self._candidates(probabilities)
        order = ids.argsort(1)
        cumulative = np.take_along_axis(weights, order, 1).cumsum(1)
        total = cumulative[:, -1:]
        target = np.minimum(uniform.cpu().numpy()[:, None] * total, np.nextafter(total, 0.0))  # see _below
        place = (cumulative <= target).sum(1, keepdims=True)
        chosen = np.take_along_axis(ids, np.take_along_axis(order, place, 1), 1)[:, 0]
        drawn = torch.from_numpy(chosen).to(probabilities.device)
        left = torch.from_numpy(np.flatnonzero(~covered)).to(probabilities.device)
        for begin in range(0, len(left), ROWS_PER_PASS):
            rows = left[begin : begin + ROWS_PER_PASS]
            drawn[rows] = draw(self.of(rows).apply(probabilities[rows]), uniform[rows])
        return drawn

    def _candidates(self, probabilities: Tensor) -> tuple[Ids, Floats, NDArray[np.bool_]]:
        """The most likely tokens' ids, their float64 weights (0 if truncated), and whether nothing else is kept [S].

        In numpy, on the host: there are few of them, and each of torch's calls takes several times as long.
        """
        values, found = top(probabilities, min(CANDIDATES, self.vocab))
        ids, weights = found.cpu().numpy(), values.cpu().numpy().astype(np.float64)
        top_k, top_p, min_p = (each.cpu().numpy() for each in (self.top_k, self.top_p, self.min_p))
        count = ids.shape[1]
        cumulative = weights.cumsum(1)
        in_min_p = (weights >= min_p[:, None] * weights[:, :1]).sum(1)
        limit = np.minimum(top_k, in_min_p)
        limited = (top_k < self.vocab) | (min_p > 0)
        # Whether the end of what min_p and top_k keep is seen here, and so the mass that top_p is a share of.
        seen = (limit < count) | (top_k <= count)
        mass = np.where(limited, np.take_along_axis(cumulative, limit[:, None] - 1, 1)[:, 0], 1.0)
        nucleus = (cumulative < (top_p * mass)[:, None]).sum(1) + 1
        kept = np.where(top_p < 1, np.minimum(nucleus, limit), limit)
        covered = np.where(limited, seen, (nucleus <= count) & (top_p < 1)) | (count == self.vocab)
        weights *= np.arange(count) < kept[:, None]
        return ids, weights, covered

    def apply(self, probabilities: Tensor) -> Tensor:
        """[S, V] float32 with everything that is not kept set to 0: exact for any row, by whole passes."""
        kept = probabilities.clone()
        limited = self._limited
        rows = (self.min_p > 0).nonzero().squeeze(1)
        if len(rows):
            part = kept[rows].double()
            kept[rows] *= part >= self.min_p[rows, None] * part.amax(1, keepdim=True)
        rows = (self.top_k < self.vocab).nonzero().squeeze(1)
        if len(rows):
            kept[rows] = _keep_first(kept[rows], None, self.top_k[rows].double())
        rows = (self.top_p < 1).nonzero().squeeze(1)
        if len(rows):
            weights = kept[rows].double()
            goal = self.top_p[rows]
            if bool(limited[rows].any()):
                goal = goal * torch.where(limited[rows], in_blocks(weights, 0.0).sum(2).sum(1), 1.0)
            kept[rows] = _keep_first(kept[rows], weights, goal)
        return kept


def _keep_first(probabilities: Tensor, weights: Tensor | None, goal: Tensor) -> Tensor:
    """Keep the fewest most likely ids of each row whose weights reach `goal`, all if they never do; the rest becomes 0.

    `weights` [R, V] float64 is what is counted: the probabilities themselves, or (None) one for each id.

    A radix selection: the bits of a float >= 0 sort like the float, so three histograms of ten bits each, from the
    top, lead to the value at which the goal is reached. Only the first one needs every id.
    """
    bits = probabilities.view(torch.int32)
    counted = torch.ones_like(probabilities, dtype=torch.float64) if weights is None else weights
    leading = bits >> 20
    histogram = torch.zeros(len(goal), 1024, dtype=torch.float64, device=bits.device)
    digit, above, mass = _descend(histogram.scatter_add(1, leading.long(), counted), torch.zeros_like(goal), goal)
    prefix = digit
    row, column = (leading == digit.int()[:, None]).nonzero(as_tuple=True)
    rest, counted = bits[row, column], counted[row, column]
    for shift in (10, 0):
        digits = (rest >> shift) & 1023
        flat = histogram.view(-1).index_add(0, row * 1024 + digits, counted)
        digit, above, mass = _descend(flat.view_as(histogram), above, goal)
        prefix = (prefix << 10) | digit
        inside = digits == digit[row]
        row, rest, counted = row[inside], rest[inside], counted[inside]
    value = prefix.int().view(torch.float32)
    unit = value.double() if weights is not None else torch.ones_like(goal)
    return _cut(probabilities, value, _needed(goal - above, unit, above, goal), (mass / unit).round())


def _descend(histogram: Tensor, above: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where, from the highest digit of [R, 1024] down, `goal` is reached, `above` [R] having been collected before.

    Returns the digit [R] (the lowest that occurs, if the goal is never reached), the weight above it and its own.
    """
    falling = histogram.flip(1)
    cumulative = pad(falling.cumsum(1), (1, 0))
    reached = (above[:, None] + cumulative[:, 1:] < goal[:, None]).sum(1)
    last = 1023 - (histogram > 0).to(torch.uint8).argmax(1)
    place = torch.minimum(reached, last)[:, None]
    return 1023 - place.squeeze(1), above + cumulative.gather(1, place).squeeze(1), falling.gather(1, place).squeeze(1)


def _needed(missing: Tensor, unit: Tensor, above: Tensor, goal: Tensor) -> Tensor:
    """How many of weight `unit` bring `above` to `goal`, at least one. The quotient is rounded, the sum decides."""
    needed = (missing / unit).ceil().clamp(min=1)
    needed = needed - ((needed > 1) & (above + (needed - 1) * unit >= goal)).double()
    return needed + (above + needed * unit < goal).double()


def _cut(probabilities: Tensor, value: Tensor, needed: Tensor, equals: Tensor) -> Tensor:
    """Keep what is above `value` and, of the `equals` ids that have it, the first `needed`; all [R]."""
    kept = probabilities * (probabilities >= value[:, None])
    rows = (equals > needed).nonzero().squeeze(1)
    if len(rows):
        equal = probabilities[rows] == value[rows, None]
        kept[rows] = kept[rows] * ~(equal & (equal.cumsum(1) > needed[rows, None]))
    return kept
