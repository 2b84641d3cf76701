"""From the fields of a body to the engine's sampling parameters: everything that needs the tokenizer or the model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import msgspec

from leoserve.api.context import ServerContext
from leoserve.api.errors import ApiError, bad_request, shorten
from leoserve.api.protocol.base import SamplingFields
from leoserve.engine.request import Grammar, Request, SamplingParams
from leoserve.text.tokenizer import Tokenizer

MAX_LOGPROBS_TOLD = 4_000_000  # by one request; each takes about a hundred bytes until the answer is sent
MAX_IDS_CARRIED = 2_000_000  # by one request, in the lists of tokens that all its prompts carry along
TOKEN_ID = re.compile(r"[0-9]{1,10}")


def sampling_params(
    context: ServerContext,
    body: SamplingFields,
    *,
    max_tokens: int,
    choices: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """The parameters of one prompt's `choices` answers of at most `max_tokens` tokens. Raises ApiError.

    A client's negative seed counts as its 64-bit pattern; without a seed each prompt gets a new one.
    """
    tokenizer = context.tokenizer
    if body.min_tokens > max_tokens:
        raise bad_request(f"'min_tokens' must be at most the {max_tokens} tokens of the answer.", "min_tokens")
    check_tokens(tokenizer, body.stop_token_ids, "stop_token_ids")
    if body.allowed_token_ids is not None:
        check_tokens(tokenizer, body.allowed_token_ids, "allowed_token_ids")
    ends = set(body.stop_token_ids) | (frozenset() if body.ignore_eos else tokenizer.stop_ids)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=context.seeds.getrandbits(64) if body.seed is None else body.seed % 2**64,
        n=choices,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=logit_bias(tokenizer, body.logit_bias),
        allowed_token_ids=None if body.allowed_token_ids is None else tuple(sorted(set(body.allowed_token_ids))),
        bad_words=tuple(tuple(ids) for word in body.bad_words for ids in tokenizer.encode_bad_word(word)),
        min_tokens=body.min_tokens,
        stop_token_ids=tuple(sorted(ends)),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def check_carried(params: SamplingParams, prompts: int) -> None:
    """Raises ApiError when lists of tokens, which each prompt's request carries along, would take too much memory."""
    ids = len(params.allowed_token_ids or ()) + len(params.logit_bias) + sum(map(len, params.bad_words))
    if ids * prompts > MAX_IDS_CARRIED:
        raise bad_request(
            f"{prompts} prompts with {ids} tokens in 'allowed_token_ids', 'logit_bias' and 'bad_words' are too many for"
            " one request. Send fewer prompts at once.",
            "prompt",
        )


def reseeded(context: ServerContext, params: SamplingParams) -> SamplingParams:
    """The same for another prompt, with a new seed."""
    return msgspec.structs.replace(params, seed=context.seeds.getrandbits(64))


def check_logprobs(requests: Sequence[Request]) -> None:
    """Raises ApiError when the answers might have to tell more log-probabilities than memory should hold."""
    told = 0
    for request in requests:
        params = request.params
        if params.logprobs is not None:
            told += params.n * params.max_tokens * (params.logprobs + 1)
        if params.prompt_logprobs is not None:
            told += params.n * len(request.prompt) * (params.prompt_logprobs + 1)
    if told > MAX_LOGPROBS_TOLD:
        raise bad_request(
            f"This request asks for up to {told} log-probabilities; at most {MAX_LOGPROBS_TOLD} can be told. Lower "
            "their number per token, the number of answers, or the tokens of an answer.",
            "logprobs",
        )


def logit_bias(tokenizer: Tokenizer, biases: dict[str, float]) -> dict[int, float]:
    """The biases by token id. Raises ApiError for a key that is no token."""
    for key in biases:
        if not TOKEN_ID.fullmatch(key):
            raise bad_request(f"Invalid 'logit_bias': '{shorten(key)}' is not a token id.", "logit_bias")
    by_id = {int(key): bias for key, bias in biases.items()}
    check_tokens(tokenizer, by_id, "logit_bias")
    return by_id


def check_tokens(tokenizer: Tokenizer, ids: Collection[int], param: str) -> None:
    """Raises ApiError for the first id that the tokenizer has no token for."""
    ranges = tokenizer.id_ranges
    if not ids or (ranges and ranges[0][0] <= min(ids) and max(ids) < ranges[0][1]):
        return  # the usual case, at the speed that a prompt of a million ids needs
    for token in ids:
        if not any(start <= token < stop for start, stop in ranges):
            raise bad_request(f"Invalid '{param}': The model has no token {token}.", param)


def context_length(context: ServerContext) -> int:
    """Tokens that prompt and answer can have together: the model's context, or all of the cache if that is less."""
    ready = context.engine.ready
    if ready is None:
        raise RuntimeError("asked for the context length before the engine was ready")
    return min(ready.max_model_len, ready.num_blocks * ready.block_size)


def check_size(context: ServerContext, body: SamplingFields, texts: Iterable[str], param: str) -> None:
    """Refuse texts too long for the context however they are tokenized, before that work is done. Raises ApiError."""
    if body.truncate_prompt_tokens is None:
        least = sum(len(text.encode()) for text in texts) // context.longest_token
        if least > context_length(context):
            raise too_long(least, None, context_length(context), param)


def truncated(prompt: Sequence[int], body: SamplingFields, room: int, bos: int | None) -> list[int]:
    """The last tokens of `prompt`, as `truncate_prompt_tokens` asks (-1: as many as `room`); a BOS at its beginning
    is kept and counted."""
    if body.truncate_prompt_tokens is None:
        return list(prompt)
    keep = max(room, 1) if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    if len(prompt) <= keep:
        return list(prompt)
    if keep == 1 or prompt[0] != bos:
        return list(prompt[len(prompt) - keep :])
    return [prompt[0], *prompt[len(prompt) - keep + 1 :]]


def check_length(prompt: int, answer: int | None, limit: int, param: str) -> int:
    """The most tokens the answer may have: `answer`, or what the context leaves.

    `prompt`, `answer` and `limit` are counts of tokens; `param` is the field that the prompt came from. Raises ApiError
    context_length_exceeded.
    """
    if prompt + (1 if answer is None else answer) <= limit:
        return limit - prompt if answer is None else answer
    raise too_long(prompt, answer, limit, param)


def too_long(prompt: int, answer: int | None, limit: int, param: str) -> ApiError:
    wanted = f"{prompt} in the {param}"
    total = prompt
    if answer is not None:
        total += answer
        wanted += f", {answer} in the completion"
    return bad_request(
        f"This model's maximum context length is {limit} tokens. However, you requested {total} tokens ({wanted}). "
        f"Please reduce the length of the {param} or of the completion.",
        param,
        "context_length_exceeded",
    )
