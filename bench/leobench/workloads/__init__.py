"""What is asked of a server: random lengths, German chats, conversations, documents among chats, traces."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from leobench.load import count, number
from leobench.workloads.chat import Chats, Conversations
from leobench.workloads.documents import Documents
from leobench.workloads.lengths import SYNTAX, counts, lengths
from leobench.workloads.planned import Message, Planned, Prompt, Workload, answer_name, sessions
from leobench.workloads.synthetic import Form, Synthetic
from leobench.workloads.traces import BadTrace, Trace, read_trace
from leobench.workloads.words import ESTIMATED, Words

__all__ = [
    "ESTIMATED",
    "BadTrace",
    "Form",
    "Message",
    "Planned",
    "Prompt",
    "Words",
    "Workload",
    "add_arguments",
    "answer_name",
    "from_options",
    "sessions",
    "share",
    "whole",
]

WORKLOADS = {
    "random": "made-up prompts of --input-tokens",
    "chat": "bundled German prompts",
    "conversations": "several turns, each with all that was said before",
    "documents": "long documents with questions, among chats",
    "trace": "the requests of --trace",
}
DEFAULT_INPUT = "128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a workload."""
    group = parser.add_argument_group("workload: what is asked", f"DIST is {SYNTAX}")
    group.add_argument(
        "--workload",
        choices=list(WORKLOADS),
        default="chat",
        help="; ".join(f"{name}: {about}" for name, about in WORKLOADS.items()) + " [default: chat]",
    )
    group.add_argument(
        "--input-tokens",
        type=counts,
        metavar="DIST",
        help="of a random prompt, or of a user's turn in conversations [default: 128; conversations: bundled prompts]",
    )
    group.add_argument(
        "--output-tokens", type=counts, default=counts("128"), metavar="DIST", help="the most to ask for [default: 128]"
    )
    group.add_argument(
        "--turns",
        type=counts,
        default=counts("uniform:2:6"),
        metavar="DIST",
        help="of a conversation [default: %(default)s]",
    )
    group.add_argument(
        "--think",
        type=lengths,
        default=lengths("0"),
        metavar="DIST",
        help="seconds from an answer to a conversation's next turn [default: 0]",
    )
    group.add_argument(
        "--system-tokens",
        type=whole,
        default=0,
        metavar="N",
        help="a system message of about N tokens begins every conversation [default: 0]",
    )
    group.add_argument(
        "--document-share",
        type=share,
        default=0.2,
        metavar="X",
        help="of the requests that are about a document [default: 0.2]",
    )
    group.add_argument(
        "--document-tokens",
        type=counts,
        default=counts("2000"),
        metavar="DIST",
        help="about how long they are [default: 2000]",
    )
    group.add_argument(
        "--questions", type=count, default=3, metavar="N", help="so many requests share a document [default: 3]"
    )
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="CSV as Azure or BurstGPT publish it, or JSON lines with arrival, output_tokens and one of prompt, "
        "messages and input_tokens",
    )
    group.add_argument("--seed", type=whole, default=1, metavar="N", help="of everything that is drawn [default: 1]")


def from_options(options: argparse.Namespace, form: Form = "none", words: Words = ESTIMATED) -> Workload:
    """The workload that the options describe. Raises BadTrace.

    form: the endpoint that prompts are for; "none" makes no texts, only lengths
    words: what made-up texts consist of
    """
    seed, answer = options.seed, options.output_tokens
    if form == "completions":  # no template is around a prompt
        words = replace(words, around=0)
    match options.workload:
        case "random":
            return Synthetic(options.input_tokens or counts(DEFAULT_INPUT), answer, seed, form, words)
        case "conversations":
            return Conversations(
                options.turns, options.think, options.system_tokens, options.input_tokens, answer, seed, form, words
            )
        case "documents":
            return Documents(
                options.document_share, options.document_tokens, options.questions, answer, seed, form, words
            )
        case "trace":
            if options.trace is None:
                raise BadTrace("--workload trace needs --trace FILE")
            rows, empty = read_trace(options.trace)
            return Trace(options.trace, rows, seed, form, words, empty)
        case _:
            return Chats(answer, seed, form, words)


def share(text: str) -> float:
    """Between 0 and 1. Raises ArgumentTypeError."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def whole(text: str) -> int:
    """A whole number, at least 0. Raises ArgumentTypeError."""
    value = number(text)
    if value < 0 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number, at least 0")
    return int(value)
