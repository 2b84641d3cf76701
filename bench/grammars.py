"""Compare grammar engines on the schemas of tests/text/schemas: what they keep, what they refuse, how long they take.

    python bench/grammars.py --tokenizer FOLDER

Each engine runs in a process of its own, on one thread. FOLDER holds a `tokenizer.json` of the kind LeoLM has: BPE with
byte fallback, "▁" for a space. Needs `jsonschema[format]` and the engines that are to be compared.

An instance counts as accepted when the engine takes its compact, its spaced and its indented spelling and then an end
token. A walk draws uniformly from the allowed tokens, as a random model at a high temperature would,
and after `FREE_TOKENS` prefers what closes strings, lists and objects, so that most walks end.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import random
import re
import resource
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SCHEMAS = Path(__file__).parents[1] / "tests" / "text" / "schemas"
RESULTS = Path(__file__).parent / "results" / "grammars.json"
ROWS = 32128  # of the network's output; ids past the tokenizer's have no token
WALKS, FREE_TOKENS, MOST_TOKENS = 6, 60, 600
ITEMS = 20_000  # of llguidance's parser at one place: its 2,000 stop objects of 500 optional properties
WHITESPACE = 8  # characters between two tokens of JSON, at most

Mask = NDArray[np.int32]


class Matcher(Protocol):
    """One output in the making."""

    def fill(self, mask: Mask) -> None: ...
    def accept(self, token: int) -> bool: ...


Start = Callable[[], Matcher]


class Vocabulary:
    """Token ids, their bytes, and the ids that end an answer."""

    def __init__(self, folder: Path) -> None:
        spec = json.loads((folder / "tokenizer.json").read_text())
        added = {entry["content"]: int(entry["id"]) for entry in spec["added_tokens"]}
        self.bytes = [b""] * ROWS  # empty: a control token, or none
        for token, number in spec["model"]["vocab"].items():
            if token not in added:
                byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
                self.bytes[number] = bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
        self.ends = sorted(added[token] for token in ("</s>", "<|im_end|>") if token in added)
        self.closing = {number for number, data in enumerate(self.bytes) if data in (b'"', b"}", b"]", b"null", b"0")}
        # a text may spell "</s>" without meaning the control token: give the control tokens names that are in no text
        secret = secrets.token_hex(16)
        names = {content: f"<{secret}:{number}>" for content, number in added.items()}
        spec["added_tokens"] = [entry | {"content": names[entry["content"]]} for entry in spec["added_tokens"]]
        spec["model"]["vocab"] = {names.get(token, token): n for token, n in spec["model"]["vocab"].items()}
        spec["model"]["unk_token"] = names[spec["model"]["unk_token"]]
        spec["post_processor"] = None
        self.text = json.dumps(spec)
        self.ids: dict[bytes, list[int]] = {}
        for number, data in enumerate(self.bytes):
            self.ids.setdefault(data, []).append(number)
        self.longest = max(map(len, self.ids))

    def beginnings(self, data: bytes) -> Iterator[int]:
        """The tokens that `data` may begin with, long ones first."""
        for size in range(min(self.longest, len(data)), 0, -1):
            yield from self.ids.get(data[:size], [])


def llguidance(vocabulary: Vocabulary) -> Callable[[Any], Start]:
    engine: Any = importlib.import_module("llguidance")
    tokenizer = engine.LLTokenizer(vocabulary.text, n_vocab=ROWS, eos_token=vocabulary.ends)
    limits = engine.LLParserLimits(max_items_in_row=ITEMS, verbose_errors=False)
    options = {"whitespace_pattern": rf"[\x20\x0A\x09]{{1,{WHITESPACE}}}"}

    class Row:
        def __init__(self, matcher: Any) -> None:
            self.matcher = matcher

        def fill(self, mask: Mask) -> None:
            self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

        def accept(self, token: int) -> bool:
            return bool(self.matcher.consume_token(token))

    def compiled(schema: Any) -> Start:
        grammar = engine.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
        matcher = engine.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return lambda: Row(matcher.deep_copy())

    return compiled


def xgrammar(vocabulary: Vocabulary) -> Callable[[Any], Start]:
    torch, engine = importlib.import_module("torch"), importlib.import_module("xgrammar")
    info = engine.TokenizerInfo(vocabulary.bytes, engine.VocabType.RAW, vocab_size=ROWS, stop_token_ids=vocabulary.ends)
    compiler = engine.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    class Row:
        def __init__(self, grammar: Any) -> None:
            self.matcher = engine.GrammarMatcher(grammar)

        def fill(self, mask: Mask) -> None:
            if not self.matcher.fill_next_token_bitmask(torch.from_numpy(mask)[None], 0):
                mask.fill(-1)

        def accept(self, token: int) -> bool:
            return bool(self.matcher.accept_token(token))

    def compiled(schema: Any) -> Start:
        # strict_mode adds additionalProperties: false to every object: only False is the schema as it is
        grammar = compiler.compile_json_schema(json.dumps(schema), strict_mode=False, max_whitespace_cnt=WHITESPACE)
        return lambda: Row(grammar)

    return compiled


def leoserve(vocabulary: Vocabulary) -> Callable[[Any], Start]:
    """The first with what leoserve makes of schemas before, and with its limits and white space."""
    step, grammar = importlib.import_module("leoserve.model.step"), importlib.import_module("leoserve.model.grammar")
    control = [number for number, data in enumerate(vocabulary.bytes) if not data]
    grammars = grammar.Grammars(step.TokenTable(vocabulary.bytes, control, vocabulary.ends))

    class Row:
        def __init__(self, matcher: Any) -> None:
            self.matcher = matcher

        def fill(self, mask: Mask) -> None:
            self.matcher.inner.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

        def accept(self, token: int) -> bool:
            self.matcher.advance(token)
            return self.matcher.error is None

    def compiled(schema: Any) -> Start:
        try:
            ready = grammars.compile(step.Grammar("json_schema", json.dumps(schema), ""))
        except grammar.GrammarError as error:
            raise ValueError(str(error)) from error
        return lambda: Row(ready.start())

    return compiled


ENGINES = {"llguidance": llguidance, "xgrammar": xgrammar, "leoserve": leoserve}


def spellings(value: Any) -> list[str]:
    return [
        json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        json.dumps(value, ensure_ascii=False),
        json.dumps(value, ensure_ascii=False, indent=1 if len(json.dumps(value)) < 60 else None),
    ]


def accepts(row: Matcher, text: str, vocabulary: Vocabulary, times: list[float]) -> bool:
    """Whether the row takes the text in some spelling and may then end; `times` gets the seconds of each mask.

    Where one text alone can follow, an engine may allow one spelling of it only.
    """
    mask, data = np.zeros((ROWS + 31) // 32, np.int32), text.encode()
    while True:
        began = time.perf_counter()
        row.fill(mask)
        times.append(time.perf_counter() - began)
        candidates = vocabulary.beginnings(data) if data else iter(vocabulary.ends)
        token = next((token for token in candidates if int(mask[token // 32]) >> (token % 32) & 1), None)
        if token is None or not row.accept(token):
            return False
        if not data:
            return True
        data = data[len(vocabulary.bytes[token]) :]


def walk(row: Matcher, vocabulary: Vocabulary, draw: random.Random, times: list[float]) -> bytes | None:
    """A random output, or None when it had no end after `MOST_TOKENS`."""
    mask, output = np.zeros((ROWS + 31) // 32, np.int32), b""
    for step in range(MOST_TOKENS):
        began = time.perf_counter()
        row.fill(mask)
        times.append(time.perf_counter() - began)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:ROWS]).tolist()
        closing = [t for t in allowed if t in vocabulary.closing or t in vocabulary.ends] if step > FREE_TOKENS else []
        if not allowed:
            return output + b" <nothing is allowed>"
        token = draw.choice(closing or allowed)
        if token in vocabulary.ends:
            return output
        if not row.accept(token):
            return output + b" <an allowed token was refused>"
        output += vocabulary.bytes[token]
    return None


def broken(output: bytes, validator: Any) -> str | None:
    """Why an output is not an instance of the schema, or None."""
    doubled: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            doubled.append("a property occurs twice")
        return dict(pairs)

    try:
        value = json.loads(output.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    problem = next(iter(validator.iter_errors(value)), None)
    return problem.message[:200] if problem else next(iter(doubled), None)


def milliseconds(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    rank = min(len(ordered) - 1, int(len(ordered) * 0.99))
    return {
        "median": round(statistics.median(ordered) * 1e3, 4),
        "p99": round(ordered[rank] * 1e3, 3),
        "max": round(ordered[-1] * 1e3, 3),
        "count": len(ordered),
    }


def one_schema(case: Any, start: Start, vocabulary: Vocabulary, times: dict[str, list[float]]) -> dict[str, Any]:
    """What an engine that compiled `case` makes of its instances and of random outputs."""
    jsonschema: Any = importlib.import_module("jsonschema")
    draft = jsonschema.Draft202012Validator
    draw = random.Random(case["name"])
    row: dict[str, Any] = {}
    for kind in ("valid", "invalid"):
        verdicts = {
            text: accepts(start(), text, vocabulary, times["instances"])
            for value in case[kind]
            for text in spellings(value)
        }
        row[kind] = [text[:120] for text, verdict in verdicts.items() if verdict != (kind == "valid")][:2]
    checkable = not case["refused"] or case["valid"] or case["invalid"]  # else no validator understands it either
    validator = draft(case["schema"] if checkable else {}, format_checker=draft.FORMAT_CHECKER)
    outputs = [walk(start(), vocabulary, draw, times["walks"]) for _ in range(WALKS)]
    ended = [output for output in outputs if output is not None]
    problems = [f"{why} in {output[:120]!r}" for output in ended if (why := broken(output, validator))]
    return row | {"walks": len(outputs), "ended": len(ended), "broken": problems[:2]}


def measure(name: str, vocabulary: Vocabulary) -> dict[str, Any]:
    """Run one engine over all schemas."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    compiled = ENGINES[name](vocabulary)
    prepared = time.perf_counter() - began
    torch_loaded = "torch" in sys.modules
    times: dict[str, list[float]] = {"compile": [], "instances": [], "walks": []}
    rows, kept = {}, []
    for path in sorted(SCHEMAS.glob("*.json")):
        case = json.loads(path.read_text())
        began = time.perf_counter()
        try:
            start = compiled(case["schema"])
        except (ValueError, RuntimeError) as error:
            rows[case["name"]] = {"must_be_refused": case["refused"], "refusal": str(error)[:200]}
            continue
        times["compile"].append(time.perf_counter() - began)
        kept.append(start)
        facts = {"must_be_refused": case["refused"], "compile_ms": round(times["compile"][-1] * 1e3, 2)}
        rows[case["name"]] = facts | one_schema(case, start, vocabulary, times)
    return {
        "version": importlib.metadata.version("xgrammar" if name == "xgrammar" else "llguidance"),
        "imports_torch": torch_loaded,
        "import_and_prepare_s": round(prepared, 3),
        "memory_mib": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        **{f"{kind}_ms": milliseconds(seconds) for kind, seconds in times.items()},
        "summary": summary(rows),
        "findings": {name: row for name, row in rows.items() if tells(row)},
    }


def tells(row: dict[str, Any]) -> bool:
    """Whether something about the schema is other than wished."""
    if "refusal" in row or row["must_be_refused"]:
        return bool(("refusal" in row) != row["must_be_refused"])
    return bool(row["valid"] or row["invalid"] or row["broken"])


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: row for name, row in rows.items() if not row["must_be_refused"]}
    refused = {name: row for name, row in rows.items() if row["must_be_refused"]}
    took = {name: row for name, row in wanted.items() if "refusal" not in row}
    good = [name for name, row in wanted.items() if not tells(row)]
    return {
        "schemas": len(wanted),
        "held": len(good),
        "refused": sorted(wanted.keys() - took.keys()),
        "valid_not_accepted": sorted(name for name, row in took.items() if row["valid"]),
        "invalid_accepted": sorted(name for name, row in took.items() if row["invalid"]),
        "random_output_broken": sorted(name for name, row in took.items() if row["broken"]),
        "walks_ended": f"{sum(row['ended'] for row in took.values())} of {sum(row['walks'] for row in took.values())}",
        "to_be_refused": len(refused),
        "wrongly_compiled": sorted(name for name, row in refused.items() if "refusal" not in row),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--engine", choices=ENGINES, help="only this one, as JSON on standard output")
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(measure(options.engine, Vocabulary(options.tokenizer))))
        return
    results = {}
    for name in ENGINES:
        command = [sys.executable, __file__, "--tokenizer", str(options.tokenizer), "--engine", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        table = {key: value for key, value in results[name].items() if key != "findings"}
        print(name, json.dumps(table, indent=2, ensure_ascii=False))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
