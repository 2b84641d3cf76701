"""POST /tokenize, POST /detokenize, POST /v1/chat/completions/render: what the model would read, without asking it."""

from __future__ import annotations

from itertools import chain
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from leoserve.api import chat
from leoserve.api.accept import accept, begin, check_served
from leoserve.api.context import ServerContext, context_of
from leoserve.api.generation import unless_gone
from leoserve.api.ops import as_json
from leoserve.api.protocol.body import read_body, warning_headers
from leoserve.api.protocol.chat import ChatRequest
from leoserve.api.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from leoserve.api.record import Record
from leoserve.api.sampling import check_size, check_tokens
from leoserve.api.tools import told_texts


async def tokenize(request: HttpRequest) -> Response:
    """The tokens of a text or of a chat."""
    context = context_of(request)
    record = begin(request, "tokenize")
    with context.admission.place(generates=False) as hold:
        body = await read_body(request, TokenizeRequest, hold)
        record.model = body.model or context.model_ids[0]
        check_served(context, record.model)
        told = await unless_gone(request, context.threads.run(tokens_of, context, body, record))
    return as_json(told, warning_headers(request))


def tokens_of(context: ServerContext, body: TokenizeRequest, record: Record) -> dict[str, Any]:
    """vLLM's answer to /tokenize. Raises ApiError, and ClientGone. Runs in a thread."""
    record.check_wanted()
    tokenizer = context.tokenizer
    if body.prompt is not None:
        tokens = tokenizer.encode(body.prompt, add_bos=body.add_special_tokens, control_tokens=True)
    else:
        asked = body.chat(record.model)
        said = (text for message in asked.messages for text in message.texts())
        check_size(context, asked, chain(said, told_texts(asked.calling)), "messages")
        rendered = chat.render(context, asked)
        record.check_wanted()
        tokens = tokenizer.encode_prompt(rendered)
    record.prompt_tokens = len(tokens)
    record.check_wanted()
    return {
        "count": len(tokens),
        "max_model_len": model_length(context),
        "tokens": tokens,
        "token_strs": [tokenizer.spelling(token) for token in tokens] if body.return_token_strs else None,
    }


def model_length(context: ServerContext) -> int | None:
    return context.engine.ready.max_model_len if context.engine.ready else None


async def detokenize(request: HttpRequest) -> Response:
    """The text of tokens, with the control tokens among them."""
    context = context_of(request)
    record = begin(request, "detokenize")
    with context.admission.place(generates=False) as hold:
        body = await read_body(request, DetokenizeRequest, hold)
        record.model = body.model or context.model_ids[0]
        check_served(context, record.model)
        record.prompt_tokens = len(body.tokens)
        text = await unless_gone(request, context.threads.run(text_of, context, body.tokens))
    return as_json({"prompt": text}, warning_headers(request))


def text_of(context: ServerContext, tokens: list[int]) -> str:
    """Raises ApiError for an id that is no token. Runs in a thread."""
    check_tokens(context.tokenizer, tokens, "tokens")
    return context.tokenizer.decode(tokens, skip_special_tokens=False)


async def render(request: HttpRequest) -> Response:
    """The prompt that a chat becomes, as text and as tokens; or the error that the chat itself would be answered with.
    Takes the body of a chat."""
    _, told = await accept(request, "chat.completions.render", ChatRequest, prompt_of, generates=False)
    return as_json(told, warning_headers(request))


def prompt_of(context: ServerContext, body: ChatRequest, record: Record, salt: str) -> dict[str, Any]:
    """Prepares the chat as for an answer. Raises ApiError, and ClientGone. Runs in a thread.

    `token_ids` is what `truncate_prompt_tokens` left, `prompt` the whole text.
    """
    asked = chat.prepare(context, body, record, salt).requests[0]
    return {
        "request_id": record.id,
        "model": body.model,
        "prompt": chat.render(context, body).text,
        "token_ids": asked.prompt,
        "count": len(asked.prompt),
        "max_tokens": asked.params.max_tokens,
        "max_model_len": model_length(context),
    }
