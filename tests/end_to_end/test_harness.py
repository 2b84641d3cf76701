"""EleutherAI's lm-evaluation-harness scores a model over HTTP as it does by itself, with the commands of the docs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, ROOT, Serve, Server, clean_environment

TASKS = Path(__file__).parent / "harness"
DOCUMENT = ROOT / "docs" / "evaluate.md"
PLACE = "http://127.0.0.1:8000"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Samples = dict[str, list[dict[str, Any]]]  # by task
Evaluate = Callable[..., Samples]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as LeoLM's base models are, with as many rows as tokens, whose likeliest tokens are always text:
    what transformers makes of bytes that are no UTF-8 is nobody's model."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "leo", "70b")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    count = tokenizer.get_vocab_size()
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:count].clone()
    silent = [token for token in range(count) if re.fullmatch(r"<.+>", tokenizer.id_to_token(token) or "<>")]
    weights["lm_head.weight"][silent] = 0.0  # never the largest logit of many around zero
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": count}))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


@pytest.fixture(scope="module")
def server(serve_once: Serve, checkpoint: Path) -> Server:
    return serve_once(checkpoint, "--num-kv-blocks", "512", "--dtype", "float32")


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """Runs the harness's command line, offline."""

    def run(arguments: list[str], tasks: str) -> Samples:
        out = tmp_path_factory.mktemp("results")
        changed = {"--tasks": tasks, "--output_path": str(out), "--include_path": "."}
        kept = [part for option, part in pairs(arguments) if option not in {*changed, "--num_fewshot"} for part in part]
        command = [sys.executable, "-m", "lm_eval", "run", *kept, "--log_samples"]
        command += [part for pair in changed.items() for part in pair]
        home = str(tmp_path_factory.getbasetemp() / "harness-home")
        environment = clean_environment(HF_HOME=home, HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        done = subprocess.run(command, cwd=TASKS, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-4000:]
        return {task: samples(out, task) for task in tasks.split(",")}

    return run


def pairs(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Each option with all its words."""
    found: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("--"):
            found.append((word, [word]))
        else:
            found[-1][1].append(word)
    return [(option, words) for option, words in found if option != "--log_samples"]


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: int(sample["doc_id"]))


def documented(model: str, checkpoint: Path, server: Server) -> list[str]:
    """The arguments of the document's command for `model`, for this server and its checkpoint."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (command,) = [block for block in blocks if f"--model {model} " in block]
    command = command.replace("\\\n", " ").replace(PLACE, server.url)
    command = re.sub(r"\bmodel=LeoLM/[\w-]+", "model=leo", command)
    command = re.sub(r"\btokenizer=LeoLM/[\w-]+", f"tokenizer={checkpoint}", command)
    words = shlex.split(command)
    assert words[:2] == ["lm-eval", "run"]
    return words[2:]


def scores(sample: dict[str, Any]) -> list[tuple[float, str]]:
    """Of each answer: its log-likelihood, and whether it is what greedy decoding says."""
    return [(float(response[0][0]), str(response[0][1])) for response in sample["resps"]]


def check_scores(found: Samples, expected: Samples) -> float:
    """Assert that both have the same log-likelihoods and choices; the largest difference."""
    worst = 0.0
    pairs = list(zip(found["german_choice"], expected["german_choice"], strict=True))
    assert len(pairs) == 12
    for one, other in pairs:
        mine, theirs = scores(one), scores(other)
        assert len(mine) == len(theirs) == len(one["doc"]["antworten"])
        worst = max(worst, *(abs(left - right) for (left, _), (right, _) in zip(mine, theirs, strict=True)))
        assert mine.index(max(mine)) == theirs.index(max(theirs))
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
        assert (one["acc"], one["acc_norm"]) == (other["acc"], other["acc_norm"])
    assert worst < 1e-3
    return worst


def check_answers(found: Samples, expected: Samples) -> None:
    mine = [sample["filtered_resps"] for sample in found["german_answer"]]
    assert mine == [sample["filtered_resps"] for sample in expected["german_answer"]]
    assert len(mine) == 12
    assert all(answer for (answer,) in mine)


def of_transformers(checkpoint: Path) -> list[str]:
    return ["--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def expected(evaluate: Evaluate, checkpoint: Path) -> Samples:
    """What the harness finds with transformers."""
    return evaluate(of_transformers(checkpoint), "german_choice,german_answer")


def test_token_ids_score_and_continue_as_transformers_does(
    evaluate: Evaluate, expected: Samples, checkpoint: Path, server: Server
) -> None:
    arguments = documented("local-completions", checkpoint, server)
    found = evaluate(arguments, "german_choice,german_answer")
    check_scores(found, expected)
    check_answers(found, expected)


def test_texts_score_and_continue_as_transformers_does(
    evaluate: Evaluate, expected: Samples, checkpoint: Path, server: Server
) -> None:
    arguments = documented("local-completions", checkpoint, server)
    place = arguments.index("--model_args") + 1
    arguments[place] += ",tokenized_requests=False"
    found = evaluate(arguments, "german_choice,german_answer")
    check_scores(found, expected)
    check_answers(found, expected)


def test_chats_are_answered_as_transformers_does(evaluate: Evaluate, checkpoint: Path, server: Server) -> None:
    chat = evaluate([*of_transformers(checkpoint), "--apply_chat_template"], "german_answer")
    arguments = documented("local-chat-completions", checkpoint, server)
    check_answers(evaluate(arguments, "german_answer"), chat)
