"""Questions about long documents among ordinary chats: what one user's long prefill does to the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leobench.workloads.bundled import chats, documents
from leobench.workloads.chat import numbered, said, shuffled
from leobench.workloads.lengths import Lengths
from leobench.workloads.planned import Planned
from leobench.workloads.synthetic import CHOICES, LENGTHS, Form, sample
from leobench.workloads.words import CHARACTERS_PER_TOKEN, Words, estimate


@dataclass(frozen=True, slots=True)
class Documents:
    """Chats, and among them documents with a question at their end.

    share: of the requests that are about a document
    document_tokens: about how long a document is; the bundled ones are repeated or cut to that
    questions: so many requests are about one document, and share its text, before another takes its place
    """

    share: float
    document_tokens: Lengths
    questions: int
    output_tokens: Lengths
    seed: int
    form: Form
    words: Words
    name: str = "documents"

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "document_share": self.share,
            "document_tokens": str(self.document_tokens),
            "questions": self.questions,
            "output_tokens": str(self.output_tokens),
            "seed": self.seed,
        }

    def requests(self) -> Iterator[Planned]:
        lengths, places, choices = sample(self.seed, LENGTHS), shuffled(self.seed), sample(self.seed, CHOICES + 1)
        index = asked = size = 0
        text = ""
        while True:
            answer = self.output_tokens.draw_count(lengths)
            if choices.random() >= self.share:
                question = numbered(self.seed, index, chats()[next(places)].prompt)
                tokens = estimate(question) + self.words.around
                yield Planned(index, "chat", said(question, self.form), tokens, answer)
            else:
                number, again = divmod(asked, self.questions)
                if not again:
                    size = self.document_tokens.draw_count(lengths)
                    text = document(self.seed, number, size)
                questions = documents()[number % len(documents())].questions
                question = f"\n\nFrage zum Dokument: {questions[int(choices.integers(len(questions)))]}"
                tokens = size + estimate(question) + self.words.around
                prompt = said(text + question, self.form)
                yield Planned(index, "document", prompt, tokens, answer, prefix=((f"document/{number}", size),))
                asked += 1
            index += 1


def document(seed: int, number: int, tokens: int) -> str:
    """A bundled document of about `tokens` tokens, different from its first line on from that of another number."""
    chosen = documents()[number % len(documents())]
    head = f"Dokument {seed}-{number}: {chosen.title}\n\n"
    wanted = max(len(head) + 1, round(tokens * CHARACTERS_PER_TOKEN)) - len(head)
    text = chosen.text + "\n\n"
    return head + (text * (wanted // len(text) + 1))[:wanted]
