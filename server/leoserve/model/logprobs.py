"""Log-probabilities of chosen and of most likely tokens.

They are of the model's own distribution, OpenAI's meaning: log-softmax of the logits over the ids that have a token,
before bans, biases, penalties, temperature and truncation (vLLM's `raw_logprobs`, its default). So a token that a bias
forced may be reported as very unlikely, and at temperature 0 the chosen token may have a rank other than 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leoserve.model.step import TokenLogprobs
from leoserve.model.truncation import top


class RawRows:
    """Logits as the model gave them, [N, V] float32: kept, since what happens to them later is done in place."""

    def __init__(self, logits: Tensor) -> None:
        peak = logits.amax(1, keepdim=True)
        self.finite = torch.isfinite(peak).squeeze(1)  # [N]
        self.logits = logits.masked_fill(~self.finite[:, None], 0.0) if not bool(self.finite.all()) else logits
        self.peak = torch.where(self.finite[:, None], peak, 0.0)
        # The log-probability of the most likely token. The others' are that plus how far their logits lie below.
        self.best = torch.log_softmax(self.logits, 1).amax(1, keepdim=True)

    def of(self, tokens: Tensor, counts: Sequence[int]) -> list[TokenLogprobs]:
        """For the token of each row, [N] int64, and as many most likely ones as `counts` says.

        Rows that are not finite bring a logprob of NaN, a rank of 0 and no most likely ones.

        Order and rank are by logit, among equals the lower id first: the token of rank r is the r-th of the most
        likely ones.
        """
        most = min(max(counts, default=0), self.logits.shape[1])
        values, ids = top(self.logits, max(most, 1))
        chosen = self.logits.gather(1, tokens[:, None])
        ranks = self._ranks(tokens, chosen, ids)
        logprobs = (chosen - self.peak + self.best).squeeze(1).tolist()
        ids_list, top_logprobs = ids.tolist(), (values - self.peak + self.best).tolist()
        return [
            TokenLogprobs(logprobs[row], ranks[row], ids_list[row][:count], top_logprobs[row][:count])
            if finite
            else TokenLogprobs(math.nan, 0, [], [])
            for row, (count, finite) in enumerate(zip(counts, self.finite.tolist(), strict=True))
        ]

    def _ranks(self, tokens: Tensor, chosen: Tensor, ids: Tensor) -> list[int]:
        """1 for the most likely. Only rows whose token is not among the listed ids are counted through."""
        listed = ids == tokens[:, None]
        ranks = listed.to(torch.int64).argmax(1) + 1
        deep = (~listed.any(1)).nonzero().squeeze(1)
        if len(deep):
            logits, value = self.logits[deep], chosen[deep]
            above = (logits > value).sum(1)
            ranks[deep] = above + 1
            shared = ((logits >= value).sum(1) - above > 1).nonzero().squeeze(1)
            if len(shared):
                lower = torch.arange(logits.shape[1], device=logits.device) < tokens[deep[shared], None]
                ranks[deep[shared]] += ((logits[shared] == value[shared]) & lower).sum(1)
        return [int(rank) for rank in ranks.tolist()]
