"""What clients are told of a sequence: its tokens, and why it ends."""

from __future__ import annotations

from leoserve.engine.request import FinishReason, TokenLogprobs, TokenOutput
from leoserve.engine.sequence import Sequence
from leoserve.model.step import Row, RowResult


def output_of(
    sequence: Sequence,
    row: Row,
    tokens: list[int],
    logprobs: TokenLogprobs | None,
    reason: FinishReason | None,
    *,
    failed: RowResult | None = None,
) -> TokenOutput:
    """What the client of a sequence gets, once a row of it is computed."""
    request = sequence.request
    logprobs_list = None if logprobs is None else [logprobs]
    scheduled_at = sequence.scheduled_at or 0.0
    output = TokenOutput(
        request.request_id, sequence.index, tokens, logprobs_list, reason, None, sequence.num_cached, scheduled_at
    )
    if reason == "stop":  # a grammar ends an answer without one
        output.stop_token = next((token for token in tokens if token in request.params.stop_token_ids), None)
    if failed is not None:
        output.error, output.error_kind = failed.error, failed.error_kind
    elif row.targets is not None:
        output.prompt_logprobs = [None, *sequence.prompt_logprobs]  # nothing precedes the first token
    return output


def end_of(sequence: Sequence) -> TokenOutput:
    """What the client of a sequence gets when the tokens that it has turn out to be the whole answer."""
    request_id, cached, begin = sequence.request_id, sequence.num_cached, sequence.scheduled_at or 0.0
    return TokenOutput(request_id, sequence.index, [], None, "stop", None, cached, begin)


def finish_reason(sequence: Sequence, token: int) -> FinishReason | None:
    """Why the sequence ends with this token, its last; None if it goes on."""
    params = sequence.request.params
    if token in params.stop_token_ids and sequence.num_generated > params.min_tokens:
        return "stop"
    if len(sequence.tokens) >= sequence.limit:
        return "length"
    return None
