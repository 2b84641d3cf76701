"""The bodies of POST /tokenize and POST /detokenize, whose fields vLLM has named."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from leoserve.api.errors import bad_request
from leoserve.api.protocol.base import RequestBody, TokenId, Unsupported, unsupported
from leoserve.api.protocol.chat import MAX_MESSAGES, ChatRequest, Message, TemplateValue
from leoserve.api.protocol.tools import MAX_TOOLS, ToolDefinition

OF_CHATS = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


class TokenizeRequest(RequestBody):
    """A text or a chat."""

    model: str | None = Field(None, description="The name of a served model. Default: the first one.")
    prompt: str | None = Field(None, description="A text, in which control tokens may be written.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = Field(
        None, description="A chat, in place of `prompt`: its tokens are those of the prompt that it becomes."
    )
    add_special_tokens: bool = Field(
        True,
        description="Begin a text with the model's beginning-of-text token. A chat's prompt always has it, and once.",
    )
    return_token_strs: bool = Field(False, description="Also return how the vocabulary spells each token.")
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] = Field(
        default_factory=list, description="Only with `messages`, as in a chat."
    )
    add_generation_prompt: bool | None = Field(None, description="Only with `messages`, as in a chat.")
    continue_final_message: bool = Field(False, description="Only with `messages`, as in a chat.")
    chat_template_kwargs: dict[str, TemplateValue] = Field(
        default_factory=dict, max_length=32, description="Only with `messages`, as in a chat."
    )
    chat_template: Unsupported = unsupported()
    mm_processor_kwargs: Unsupported = unsupported()

    def check(self) -> None:
        if self.prompt is None and self.messages is None:
            raise bad_request("Missing required parameter: 'prompt' or 'messages'.", "prompt")
        if self.prompt is not None and self.messages is not None:
            raise bad_request("'prompt' and 'messages' exclude each other.", "messages")
        for name in OF_CHATS:
            if self.messages is None and getattr(self, name) not in (None, False, {}, []):
                raise bad_request(f"'{name}' is only allowed with 'messages'.", name)
        if self.messages is not None:
            self.chat("").check()

    def chat(self, model: str) -> ChatRequest:
        """The chat that asks `model` for what `messages` say."""
        shared = {name: getattr(self, name) for name in ("messages", *OF_CHATS)}
        return ChatRequest.model_construct(model=model, **shared)


class DetokenizeRequest(RequestBody):
    """Tokens."""

    model: str | None = Field(None, description="The name of a served model. Default: the first one.")
    tokens: Annotated[list[TokenId], Field(fail_fast=True)] = Field(description="The ids of the tokens.")
