"""Measures the demo model: exact answers to held-out phrasings.

    python -m leoserve.demo.evaluate [--model DIR] [--split test|validation] [--sample N] [--json FILE]

Each question is put as a chat, answered greedily, and counted as right only if the answer is the expected
text, letter for letter, and the model ended its turn by itself.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from leoserve.demo import model_path
from leoserve.demo.chat import Message, render_chat
from leoserve.demo.corpus import Corpus, Item
from leoserve.demo.phrasings import Split
from leoserve.demo.tokenizer import BOS_ID, EOS_ID

HELD_OUT_SEED = 1
LONGEST_ANSWER = 120
# Groups that are not facts but ways of conversing, reported apart.
CONVERSATION = ("refusal", "memory", "json", "follow-up")


class Answerer:
    """Answers chats greedily with transformers, many at once."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.im_end = self.tokenizer.get_vocab()["<|im_end|>"]

    def prompt(self, messages: Sequence[Message], card_newline: bool = False) -> list[int]:
        """Return the token ids of a chat up to the point where the answer begins."""
        text = render_chat(list(messages), card_newline, open_answer=True)
        return [BOS_ID, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    @torch.inference_mode()
    def answers(self, prompts: list[list[int]], batch: int = 96) -> list[str | None]:
        """Return one answer for each prompt; None where the model did not end its turn."""
        results: list[str | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            longest = max(len(prompts[i]) for i in chosen)
            ids = torch.tensor([[0] * (longest - len(prompts[i])) + prompts[i] for i in chosen])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
            output = self.network.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=LONGEST_ANSWER,
                do_sample=False,
                eos_token_id=[self.im_end, EOS_ID],
                pad_token_id=0,
            )
            for i, row in zip(chosen, output[:, longest:].tolist(), strict=True):
                if self.im_end in row:
                    results[i] = self.tokenizer.decode(row[: row.index(self.im_end)], skip_special_tokens=True)
        return results


@dataclass(frozen=True)
class Report:
    """What came out: every item with the answer given."""

    items: list[Item]
    given: list[str | None]

    def right(self) -> list[Item]:
        """Return the items that were answered exactly."""
        return [item for item, text in zip(self.items, self.given, strict=True) if item.answer == text]

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values: overall, distinct answers, and one row for each group."""
        right = self.right()
        asked_by, right_by = Counter(i.group for i in self.items), Counter(i.group for i in right)
        return {
            "asked": len(self.items),
            "right": len(right),
            "exact": len(right) / len(self.items),
            "exact_facts": share(right_by, asked_by),
            "distinct_answers_asked": len({item.answer for item in self.items}),
            "distinct_answers_right": len({item.answer for item in right}),
            "ended_by_itself": sum(text is not None for text in self.given) / len(self.given),
            "groups": {
                group: {"asked": asked, "right": right_by[group], "exact": right_by[group] / asked}
                for group, asked in asked_by.items()
            },
        }


def share(right: Counter[str], asked: Counter[str]) -> float:
    """Return the share of right answers among the facts alone."""
    facts = [group for group in asked if group not in CONVERSATION]
    return sum(right[group] for group in facts) / max(1, sum(asked[group] for group in facts))


def evaluate(folder: Path, sample: int | None = None, split: Split = "test") -> Report:
    """Ask every held-out question of `split` (or a seeded `sample` of them) and return what came out."""
    items = Corpus().held_out(HELD_OUT_SEED, split)
    if sample is not None:
        items = random.Random(HELD_OUT_SEED).sample(items, sample)
    answerer = Answerer(folder)
    return Report(items, answerer.answers([answerer.prompt(item.messages) for item in items]))


def table(summary: dict[str, Any]) -> str:
    """Return the figures as a small Markdown table."""
    lines = ["| group | asked | exact |", "|---|---:|---:|"]
    lines += [f"| {name} | {row['asked']} | {row['exact']:.1%} |" for name, row in summary["groups"].items()]
    facts = sum(row["asked"] for name, row in summary["groups"].items() if name not in CONVERSATION)
    lines.append(f"| **facts** | {facts} | **{summary['exact_facts']:.1%}** |")
    lines.append(f"| **all** | {summary['asked']} | **{summary['exact']:.1%}** |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m leoserve.demo.evaluate", description="Measure the demo model.")
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="which held-out phrasings (default: test)"
    )
    parser.add_argument("--sample", type=int, help="ask only this many questions")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--wrong", type=int, default=0, help="show this many wrong answers")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = evaluate(arguments.model, arguments.sample, arguments.split)
    summary = report.summary()
    print(table(summary))
    print(f"{summary['distinct_answers_right']} distinct answers right of {summary['distinct_answers_asked']} asked")
    wrong = [(i, text) for i, text in zip(report.items, report.given, strict=True) if i.answer != text]
    for item, text in wrong[: arguments.wrong]:
        print(f"{item.group}: {item.messages[-1].content!r} -> {text!r}, expected {item.answer!r}")
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
