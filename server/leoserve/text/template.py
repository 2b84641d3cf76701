"""Chat templates: messages to the text of a prompt, in a sandbox that is bounded in time and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import TemplateSyntaxError

from leoserve.text.control import unused_character
from leoserve.text.files import read_json
from leoserve.text.sandbox import LimitExceeded, Program
from leoserve.text.tokenizer import CHATML_TOKENS, Tokenizer

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + '<|im_end|>\n' }}"
    "SYSTEM_END"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_BLANK_LINE_AFTER_SYSTEM = "{% if message['role'] == 'system' %}{{ '\n' }}{% endif %}"
_GIVEN = frozenset({"messages", "add_generation_prompt", "tools", "documents"})


class TemplateError(ValueError):
    """A chat that the template does not render, or a template that cannot be used."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The text of a prompt; where `mark` stands in `marked`, a user's text spells a control token."""

    marked: str
    mark: str = ""

    @property
    def text(self) -> str:
        """The prompt as a reader sees it."""
        return self.marked.replace(self.mark, "") if self.mark else self.marked


class ChatTemplate:
    """A checkpoint's chat template, compiled.

    missing: why there is none and what to do; `render` raises it
    source: the Jinja text
    origin: where it comes from
    variables: names that the template reads and a caller may give in `extra`
    knows_tools: whether it writes `tools` itself, when they are given in `extra`

    Nothing is added to a chat: without a system message there is no system turn, unless the template itself writes one.
    """

    def __init__(self, source: str, origin: str, tokenizer: Tokenizer | None) -> None:
        self.source = source
        self.origin = origin
        self.missing: str | None = None
        self._tokenizer = tokenizer
        try:
            self._program = Program(source)
        except TemplateSyntaxError as error:
            raise TemplateError(f"the chat template from {origin}, line {error.lineno}: {error.message}") from error
        named = tokenizer.named if tokenizer else {}
        self._globals = {"tools": None, "documents": None, **named}
        self.variables = self._program.variables - _GIVEN - named.keys()
        self.knows_tools = "tools" in self._program.variables

    @classmethod
    def load(cls, folder: Path, override: str | None, tokenizer: Tokenizer) -> ChatTemplate:
        """`override` (a file, or Jinja text itself), else the checkpoint's template, else ChatML for a tokenizer that
        has its tokens. The end of turn that the template writes becomes one of the tokenizer's stop ids.

        Raises TemplateError for a template that cannot be read.
        """
        source, origin = _find(folder, override)
        if source is None and all(tokenizer.token_id(token) is not None for token in CHATML_TOKENS):
            source, origin = chatml(folder), "built-in ChatML"
        if source is None:
            template = cls("", "nowhere", tokenizer)
            template.missing = (
                f"{folder} has no chat template and its tokenizer no ChatML tokens, as a base model: "
                "use /v1/completions, or start the server with --chat-template FILE"
            )
            return template
        template = cls(source, origin, tokenizer)
        template._learn_end_of_turn()
        return template

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        extra: Mapping[str, Any],
    ) -> RenderedPrompt:
        """The prompt of a chat. `extra`: further variables for the template, checked by the caller.

        `continue_final_message`: the prompt ends with the last message's text, for the model to go on from there.
        Raises TemplateError.
        """
        if self.missing:
            raise TemplateError(self.missing)
        if not messages:
            raise TemplateError("a chat needs at least one message")
        if continue_final_message and add_generation_prompt:
            raise TemplateError("add_generation_prompt and continue_final_message exclude each other")
        if taken := sorted((_GIVEN - {"tools", "documents"}) & extra.keys()):
            raise TemplateError(f"{taken[0]} cannot be given to the template")
        texts = [self.source, *_strings(messages), *_strings(dict(extra))]
        mark = unused_character(texts)
        end = unused_character(texts, without=mark)
        chat = [self._marked_message(message, mark) for message in messages]
        if continue_final_message:
            if not isinstance(chat[-1].get("content"), str):
                raise TemplateError("the last message has no text to continue")
            chat[-1]["content"] += f"{end} "
        variables = self._globals | {
            "messages": chat,
            "add_generation_prompt": add_generation_prompt,
            **{name: self._marked(value, mark) for name, value in extra.items()},
        }
        text = self._run(variables, sum(map(len, texts)))
        if continue_final_message:
            text = _cut(text, end)
        return RenderedPrompt(text, mark if mark in text else "")

    def _run(self, variables: dict[str, Any], size: int) -> str:
        try:
            return self._program.run(variables, input_size=size)
        except LimitExceeded as error:
            raise TemplateError(f"the chat template was stopped: {error}") from error
        except JinjaError as error:
            raise TemplateError(error.message or "the chat template refuses this chat") from error
        except Exception as error:  # a template is a program: it may fail in any way Python can
            raise TemplateError(f"the chat template fails on this chat: {type(error).__name__}: {error}") from error

    def _marked_message(self, message: Mapping[str, Any], mark: str) -> dict[str, Any]:
        marked: dict[str, Any] = {}
        for key, value in message.items():
            if key == "role" and value in ROLES:
                marked[key] = "system" if value == "developer" else value
            elif key == "content" and isinstance(value, str) and self._tokenizer:
                marked[key] = self._tokenizer.control.mark(value, mark, edges=True)
            else:
                marked[key] = self._marked(value, mark)
        return marked

    def _marked(self, value: Any, mark: str) -> Any:
        """A copy of plain JSON data with every string marked."""
        if isinstance(value, str):
            return self._tokenizer.control.mark(value, mark, edges=False) if self._tokenizer else value
        if isinstance(value, Mapping):
            return {self._marked(key, mark): self._marked(part, mark) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(part, mark) for part in value]
        return value

    def _learn_end_of_turn(self) -> None:
        """A template ends an assistant's turn with a control token: that token ends an answer."""
        probe = "0f8e3a61"
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": probe}]
        try:
            rendered = self.render(chat, add_generation_prompt=False, continue_final_message=False, extra={})
        except TemplateError:
            return  # a template may want other chats than this one; the tokenizer's own ends remain
        if self._tokenizer and probe in rendered.text:
            after = rendered.text.rpartition(probe)[2].strip()
            rest = self._tokenizer.encode(after, control_tokens=True, add_bos=False)
            if rest and rest[0] in self._tokenizer.control_ids:
                self._tokenizer.add_stop_id(rest[0])


def chatml(folder: Path) -> str:
    """ChatML as LeoLM was trained with it: the Llama-based models' cards have a blank line after the system turn, the
    Mistral-based one's has none."""
    architectures = read_json(folder / "config.json").get("architectures") or ["LlamaForCausalLM"]
    blank_line = "" if "mistral" in str(architectures[0]).lower() else _BLANK_LINE_AFTER_SYSTEM
    return _CHATML.replace("SYSTEM_END", blank_line)


def _find(folder: Path, override: str | None) -> tuple[str | None, str]:
    """The template given or found, and where. A list of named templates counts with its `default`."""
    if override:
        return _override(override), "--chat-template"
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if not path.exists():
            continue
        if path.suffix == ".jinja":
            return path.read_text(encoding="utf-8"), name
        found = read_json(path).get("chat_template")
        if isinstance(found, list):
            found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
        if isinstance(found, str):
            return found, name
    return None, ""


def _override(override: str) -> str:
    if "{{" in override or "{%" in override:
        return override
    path = Path(override).expanduser()
    if not path.is_file():
        raise TemplateError(f"--chat-template: {override} is neither a file nor Jinja text")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"--chat-template: {path} cannot be read: {error}") from error


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for parts in value.items() for text in _strings(parts)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _strings(part)]
    return []


def _cut(text: str, end: str) -> str:
    """The text up to `end`; without the space before it where the template trimmed the space after it."""
    before, found, after = text.rpartition(end)
    if not found:
        raise TemplateError("the chat template leaves out the last message, so it cannot be continued")
    return before if after.startswith(" ") else before.rstrip()
