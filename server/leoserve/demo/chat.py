"""ChatML, the way LeoLM's chat models expect it."""

from __future__ import annotations

from dataclasses import dataclass

# The system prompt of LeoLM's model cards.
CARD_SYSTEM = (
    "Dies ist eine Unterhaltung zwischen einem intelligenten, hilfsbereitem KI-Assistenten und einem Nutzer.\n"
    "Der Assistent gibt ausführliche, hilfreiche und ehrliche Antworten."
)


@dataclass(frozen=True)
class Message:
    """One turn of a chat: role is "system", "user" or "assistant"."""

    role: str
    content: str


def render_chat(messages: list[Message], card_newline: bool = False, open_answer: bool = False) -> str:
    """Return the ChatML text of `messages`, without the leading `<s>`.

    `card_newline` puts one more newline after the system turn, as LeoLM's cards do; `open_answer` appends
    the header of the assistant's turn, for a prompt.
    """
    parts = []
    for message in messages:
        parts.append(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n")
        if message.role == "system" and card_newline:
            parts.append("\n")
    return "".join(parts) + ("<|im_start|>assistant\n" if open_answer else "")
