"""What chats and completions are answered, whole and as chunks of a stream; see `answers` on what these models are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leoserve.api.protocol.answers import Answer, Count, Generated, Logprob, PromptLogprobs, TokenIds, Usage, sometimes

Bytes = list[int]
ChatFinish = Literal["stop", "length", "tool_calls", "function_call"]
OBFUSCATION = "Random characters, with `include_obfuscation`."


class AlternativeToken(Answer):
    token: str
    logprob: Logprob
    bytes: Bytes = Field(description="UTF-8; of a token that is a part of a character, that part.")


class TokenLogprob(AlternativeToken):
    top_logprobs: list[AlternativeToken]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None


class CalledByName(Answer):
    name: str
    arguments: str = Field(description="JSON text.")


class ToolCall(Answer):
    id: str
    type: Literal["function"]
    function: CalledByName


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] = sometimes("The calls of functions that the model has made.")
    function_call: CalledByName = sometimes("The older form of one call, where the request has `functions`.")


class ChatChoice(Answer):
    index: Count
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish
    token_ids: TokenIds = sometimes("With `return_token_ids`.")


class ChatCompletion(Generated):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: TokenIds = sometimes("With `return_token_ids`.")
    prompt_logprobs: PromptLogprobs = sometimes("With `prompt_logprobs`.")


class FunctionDelta(Answer):
    name: str = sometimes("Of a call that begins.")
    arguments: str = Field(description="More of the JSON text.")


class ToolCallDelta(Answer):
    index: Count
    id: str = sometimes("Of a call that begins.")
    type: Literal["function"] = sometimes("Of a call that begins.")
    function: FunctionDelta


class ChatDelta(Answer):
    role: Literal["assistant"] = sometimes("In the first chunk of a choice.")
    content: str | None = sometimes("More of the text.")
    tool_calls: list[ToolCallDelta] = sometimes("More of the calls.")
    function_call: FunctionDelta = sometimes("More of the call, where the request has `functions`.")


class ChatChunkChoice(Answer):
    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish | None
    token_ids: TokenIds = sometimes("With `return_token_ids`.")


class ChatCompletionChunk(Generated):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = sometimes("With `include_usage` or `continuous_usage_stats`.")
    prompt_token_ids: TokenIds = sometimes("With `return_token_ids`, in the first chunk.")
    prompt_logprobs: PromptLogprobs = sometimes("With `prompt_logprobs`, in the first chunk.")
    obfuscation: str = sometimes(OBFUSCATION)


class CompletionTokenLogprobs(Answer):
    """Of each token one entry; null for a prompt's first token, which nothing predicts."""

    text_offset: list[Count]
    token_logprobs: list[Logprob | None]
    tokens: list[str]
    top_logprobs: list[dict[str, Logprob] | None]


class CompletionChoice(Answer):
    index: Count
    text: str
    logprobs: CompletionTokenLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: TokenIds = sometimes("With `return_token_ids`.")
    prompt_token_ids: TokenIds = sometimes("With `return_token_ids`.")
    prompt_logprobs: PromptLogprobs = sometimes("With `prompt_logprobs`.")


class Completion(Generated):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Answer):
    index: Count
    text: str
    logprobs: CompletionTokenLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: TokenIds = sometimes("With `return_token_ids`.")
    prompt_token_ids: TokenIds = sometimes("With `return_token_ids`, in the first chunk of a choice.")
    prompt_logprobs: PromptLogprobs = sometimes("With `prompt_logprobs`, in the first chunk of a choice.")


class CompletionChunk(Generated):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None = sometimes("With `include_usage` or `continuous_usage_stats`.")
    obfuscation: str = sometimes(OBFUSCATION)
