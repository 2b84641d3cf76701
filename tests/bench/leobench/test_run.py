"""`leobench run` as a user starts it: what it writes, says and exits with."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import leobench as package
import leoserve
from leobench.records import Run, read
from leobench.workloads import ESTIMATED
from tests.conftest import PATIENCE, Server, clean_environment

from .conftest import Process, Told, command

Start = Callable[..., Process]
Command = Callable[..., Told]
SECRET = "geheim-4711"


def result(folder: Path, name: str = "run.json") -> Run:
    run = read(folder / name)
    assert isinstance(run, Run)
    return run


def test_a_run_of_the_demo_model_leaves_everything_in_its_file(
    demo_server: Server, leobench: Command, tmp_path: Path
) -> None:
    words = (
        "--requests",
        "24",
        "--output-tokens",
        "uniform:4:24",
        "--field",
        "temperature=0",
        "--slo",
        "e2e=60s,ttft=30s",
    )
    told = leobench("run", "--url", f"{demo_server.url}/v1", "--out", "run.json", *words)
    assert told.code == 0, told.stderr
    run = result(tmp_path)
    assert run.summary["requests"] == {"ok": 24, "failed": 0, "errors": {}}
    assert run.summary["goodput"]["share"] == 1.0
    assert [record.index for record in run.requests] == list(range(28))
    assert [record.warmup for record in run.requests] == [True] * 4 + [False] * 24
    assert all(record.ended <= run.measured_from for record in run.requests[:4])
    for record in run.requests[4:]:
        assert run.measured_from <= record.intended <= record.sent <= (record.first or 0) <= (record.last or 0)
        assert (record.last or 0) <= record.ended <= run.measured_until
        assert 0 < (record.output_tokens or 0) <= 24
        assert record.finish_reason in ("stop", "length")
    assert run.summary["server"]["generation_tokens"] == run.summary["tokens"]["output"]
    assert {sample.running for sample in run.samples} != {None}
    assert run.versions["server"] == leoserve.__version__
    assert run.versions["leobench"] == package.__version__ == leoserve.__version__
    assert run.workload["name"] == "chat"
    assert run.load == {"pattern": "closed", "concurrency": 8, "requests": 24, "seed": 1}
    assert run.target["urls"] == [demo_server.url]
    assert run.target["fields"] == {"temperature": 0}
    assert run.settings["output_tokens"] == "uniform:4:24"
    assert run.settings["seed"] == 1
    assert "24 answered" in told.stdout
    assert re.search(r"^TTFT( +[\d.]+){7}$", told.stdout, re.MULTILINE)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("workload", ["random", "chat", "conversations", "documents"])
def test_every_workload_runs_on_every_endpoint(
    demo_server: Server, leobench: Command, tmp_path: Path, endpoint: str, stream: bool, workload: str
) -> None:
    words = [
        "--workload",
        workload,
        "--endpoint",
        endpoint,
        "--requests",
        "12",
        "--output-tokens",
        "6",
        "--warmup",
        "1",
    ]
    words += [
        "--document-tokens",
        "200",
        "--document-share",
        "0.5",
        "--turns",
        "3",
        *([] if stream else ["--no-stream"]),
    ]
    told = leobench("run", "--url", demo_server.url, "--out", "run.json", *words)
    assert told.code == 0, told.stderr
    run = result(tmp_path)
    assert run.summary["requests"] == {"ok": 12, "failed": 0, "errors": {}}
    assert (run.summary["ttft"] is not None) == stream
    assert {record.session is not None for record in run.requests[1:]} == {workload == "conversations"}


def test_prompts_have_the_tokens_that_were_asked_for_where_the_server_tells_its_words(
    demo_server: Server, leobench: Command, tmp_path: Path
) -> None:
    words = ("--workload", "random", "--input-tokens", "uniform:30:90", "--output-tokens", "2", "--requests", "30")
    for endpoint, off in (("completions", 0), ("chat", 2)):
        told = leobench("run", "--url", demo_server.url, "--out", "run.json", "--endpoint", endpoint, *words)
        assert told.code == 0, told.stderr
        run = result(tmp_path)
        assert run.workload["exact_tokens"] is True
        counted = [record.prompt_tokens or 0 for record in run.requests[4:]]
        assert len(set(counted)) > 10
        assert 30 - off <= min(counted) <= max(counted) <= 90 + off


def test_a_conversation_sends_all_that_was_said_and_the_cache_knows_it(
    demo_server: Server, leobench: Command, tmp_path: Path
) -> None:
    words = ("--workload", "conversations", "--turns", "4", "--input-tokens", "100", "--output-tokens", "20")
    told = leobench(
        "run", "--url", demo_server.url, "--out", "run.json", "--requests", "16", "--concurrency", "2", *words
    )
    assert told.code == 0, told.stderr
    turns = [record for record in result(tmp_path).requests if record.session == 0]
    assert [record.turn for record in turns] == [0, 1, 2, 3]
    prompts = [record.prompt_tokens or 0 for record in turns]
    assert prompts == sorted(set(prompts))
    assert all((record.cached_tokens or 0) > 0 for record in turns[1:])


def test_the_transcript_holds_the_answers(start_double: Start, leobench: Command) -> None:
    double = start_double()
    words = ("--workload", "conversations", "--turns", "2", "--output-tokens", "2", "--requests", "2", "--warmup", "0")
    assert leobench("run", "--url", double.url, *words, "--concurrency", "1").code == 0
    first, second = (sent["body"]["messages"] for sent in double.log())
    assert second[: len(first)] == first
    assert second[len(first)] == {"role": "assistant", "content": "Ja. Ja. "}
    assert [message["role"] for message in second] == ["user", "assistant", "user"]


def test_tokenize_makes_prompts_exact(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    """The double has a token for every four letters of a word: no estimate would meet that."""
    double = start_double(tokenize=True)
    words = ("--workload", "random", "--input-tokens", "uniform:20:60", "--output-tokens", "1", "--requests", "20")
    assert (
        leobench("run", "--url", double.url, "--out", "run.json", "--warmup", "0", "--concurrency", "1", *words).code
        == 0
    )
    texts = [sent["body"]["messages"][0]["content"] for sent in double.log()]
    counted = [7 + sum(-(-len(word) // 4) for word in text.split()) for text in texts]
    lengths = [planned.prompt_tokens for _, planned in zip(texts, planned_of(*words), strict=False)]
    assert counted == lengths


def planned_of(*words: str) -> Any:
    import argparse

    from leobench import workloads

    parser = argparse.ArgumentParser()
    workloads.add_arguments(parser)
    return workloads.from_options(parser.parse_known_args(words)[0], "none", ESTIMATED).requests()


def test_several_servers_take_turns(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    doubles = [start_double(metrics=True, first=[0.05], gaps=[0.05]), start_double(metrics=True)]
    urls = [word for double in doubles for word in ("--url", double.url)]
    words = ("--requests", "20", "--output-tokens", "12", "--warmup", "0", "--scrape-every", "0.1", "--out", "run.json")
    assert leobench("run", *urls, *words).code == 0
    assert [len(double.log()) for double in doubles] == [10, 10]
    run = result(tmp_path)
    assert {sample.url for sample in run.samples} == {0, 1}
    assert {record.url for record in run.requests} == {0, 1}
    assert run.summary["server"]["generation_tokens"] == 240
    assert run.summary["server"]["running"]["max"] > 0


def test_keys_go_to_the_server_and_nowhere_else(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    double = start_double()
    where = double.url.replace("://", f"://leo:{SECRET}@")
    words = ("--requests", "2", "--output-tokens", "1", "--out", "run.json")
    for more, env in ((("--api-key", SECRET), {}), ((), {"LEOBENCH_API_KEY": SECRET})):
        told = leobench("run", "--url", double.url, *words, *more, env=env)
        assert told.code == 0, told.stderr
        assert SECRET not in told.stdout + told.stderr + (tmp_path / "run.json").read_text()
    assert {sent["headers"]["authorization"] for sent in double.log()} == {f"Bearer {SECRET}"}
    told = leobench("run", "--url", where, *words, "--header", f"x-token={SECRET}")
    assert told.code == 0, told.stderr
    assert double.log()[-1]["headers"]["x-token"] == SECRET
    assert SECRET not in told.stdout + told.stderr + (tmp_path / "run.json").read_text()


def test_failures_are_counted_by_kind_and_the_rest_is_measured(
    start_double: Start, leobench: Command, tmp_path: Path
) -> None:
    double = start_double(fail=4)
    told = leobench(
        "run", "--url", double.url, "--requests", "40", "--output-tokens", "2", "--warmup", "0", "--out", "run.json"
    )
    assert told.code == 0
    assert result(tmp_path).summary["requests"] == {"ok": 30, "failed": 10, "errors": {"http 503": 10}}
    assert "10 × http 503" in told.stdout


def test_nothing_answered_is_exit_code_1(start_double: Start, leobench: Command) -> None:
    told = leobench("run", "--url", start_double(fail=1).url, "--requests", "3", "--warmup", "0")
    assert told.code == 1
    assert "0 answered" in told.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--url", "http://127.0.0.1:1"), "no server at http://127.0.0.1:1"),
        (("--url", "ftp://somewhere"), "is no address"),
        (("--field", "temperature"), "has no value"),
        (("--field", "stop=Ende"), "is no JSON"),
        (("--no-stream", "--slo", "ttft=1s"), "can only bound e2e"),
        (("--slo", "ttfb=1s"), "is none of ttft="),
        (("--rate", "3", "--concurrency", "2"), "give one of them"),
        (("--trace", "x.csv"), "belongs to --workload trace"),
        (("--out", "nowhere/run.json"), "no folder nowhere"),
        (("--workload", "trace", "--trace", "nowhere.csv"), "nowhere.csv"),
        (("--concurency", "3"), "unrecognized arguments"),
        (("--model", "other"), "does not serve other; --model can be double"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_and_exit_code_2(
    start_double: Start, leobench: Command, words: tuple[str, ...], why: str
) -> None:
    where = () if "--url" in words else ("--url", start_double().url)
    told = leobench("run", *where, *words)
    assert (told.code, told.stdout) == (2, "")
    assert told.stderr.startswith("leobench: error: ")
    assert why in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_server_that_wants_a_key_is_named(serve: Any, leobench: Command) -> None:
    server = serve(None, "--api-key", SECRET)
    told = leobench("run", "--url", server.url, "--requests", "2")
    assert told.code == 2
    assert "wants a key: --api-key" in told.stderr
    assert (
        leobench("run", "--url", server.url, "--requests", "2", "--output-tokens", "2", "--api-key", SECRET).code == 0
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_and_keeps_what_was_measured(start_double: Start, tmp_path: Path, number: int) -> None:
    double = start_double(first=[0.05], gaps=[0.01])
    words = (
        "run",
        "--url",
        double.url,
        "--duration",
        "600",
        "--warmup",
        "0",
        "--output-tokens",
        "4",
        "--out",
        "run.json",
    )
    process = subprocess.Popen(
        command(*words),
        env=clean_environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(double.log()) < 40:
        assert process.poll() is None
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    run = result(tmp_path)
    assert 20 < run.summary["requests"]["ok"] < 500
    assert run.summary["requests"]["failed"] == 0
    assert "warning: interrupted: 8 requests on their way are not counted" in stdout
    assert "Traceback" not in stderr


def test_progress_comes_as_plain_lines_where_there_is_no_terminal(start_double: Start, leobench: Command) -> None:
    done = leobench("run", "--url", start_double(first=[0.1]).url, "--duration", "5.5", "--output-tokens", "2")
    (line,) = [line for line in done.stderr.splitlines() if "running" in line]
    told = r"(\d+) s · \d+ answered · 8 running · 0 failed · \d+ tokens/s · TTFT p50 (\d+) ms"
    match = re.fullmatch(told, line)
    assert match is not None, line
    assert int(match[1]) >= 5
    assert int(match[2]) >= 100
    assert "\x1b" not in done.stderr


def test_progress_is_one_line_that_is_rewritten_on_a_terminal(start_double: Start, tmp_path: Path) -> None:
    words = (
        "run",
        "--url",
        start_double(first=[0.1]).url,
        "--duration",
        "600",
        "--output-tokens",
        "2",
        "--warmup",
        "0",
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*words), env=clean_environment(), cwd=tmp_path, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = b""
    while shown.count(b"answered") < 3:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # the terminal's other side is closed
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert process.wait(PATIENCE) == 0
    told = shown.decode()
    assert "\n" not in told
    assert told.endswith("\r\x1b[K"), "it is gone in the end"


def test_a_ramp_of_users_grows(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    words = ("--concurrency", "1:6", "--duration", "3", "--output-tokens", "5", "--warmup", "0", "--out", "run.json")
    assert leobench("run", "--url", start_double(first=[0.02], gaps=[0.02]).url, *words).code == 0
    run = result(tmp_path)

    def under_way(moment: float) -> int:
        at = run.measured_from + moment
        return sum(record.intended <= at < record.ended for record in run.requests)

    assert max(under_way(0.1 + step / 50) for step in range(10)) == 1
    assert max(under_way(2.6 + step / 50) for step in range(10)) >= 4
    assert run.load["concurrency"] == [1, 6]


def test_a_falling_ramp_of_users_falls(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    words = ("--concurrency", "6:1", "--duration", "3", "--output-tokens", "5", "--warmup", "0", "--out", "run.json")
    assert leobench("run", "--url", start_double(first=[0.02], gaps=[0.02]).url, *words).code == 0
    run = result(tmp_path)
    late = [record for record in run.requests if record.intended - run.measured_from > 2.8]
    assert late
    assert all(one.ended <= other.intended for one, other in zip(late, late[1:], strict=False))


def test_a_trace_is_sent_at_its_own_times_or_faster(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    arrivals = [0.0, 0.5, 0.6, 2.0]
    trace.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        + "".join(f"{100 + at},ChatGPT,{20 + place},{3 + place},0,API log\n" for place, at in enumerate(arrivals))
    )
    double = start_double()
    words = ("--workload", "trace", "--trace", "trace.csv", "--endpoint", "completions", "--warmup", "0")
    assert leobench("run", "--url", double.url, *words, "--speed", "2", "--out", "run.json").code == 0
    run = result(tmp_path)
    intended = [record.intended - run.measured_from for record in run.requests]
    assert intended == pytest.approx([at / 2 for at in arrivals], abs=0.02)
    assert [record.prompt_tokens for record in run.requests] == [20, 21, 22, 23]
    assert [record.output_tokens for record in run.requests] == [3, 4, 5, 6]
    assert run.load == {"pattern": "trace", "speed": 2.0, "seed": 1}


def test_the_same_seed_sends_the_same_and_another_something_else(start_double: Start, leobench: Command) -> None:
    sent = []
    for seed in ("3", "3", "4"):
        double = start_double()
        words = ("--requests", "10", "--output-tokens", "uniform:1:9", "--seed", seed, "--rate", "200", "--cv", "2")
        assert leobench("run", "--url", double.url, *words).code == 0
        sent.append([one["body"] for one in double.log()])
    assert sorted(map(json.dumps, sent[0])) == sorted(map(json.dumps, sent[1])) != sorted(map(json.dumps, sent[2]))


def test_requests_that_were_sent_before_are_warned_of(demo_server: Server, leobench: Command) -> None:
    words = ("--workload", "random", "--endpoint", "completions", "--input-tokens", "200", "--output-tokens", "2")
    more = ("--requests", "20", "--seed", "77")
    assert "prefix cache" not in leobench("run", "--url", demo_server.url, *words, *more).stdout
    assert "came from the server's prefix cache" in leobench("run", "--url", demo_server.url, *words, *more).stdout


def test_a_client_takes_all_tokens_of_a_server_that_does_nothing_else(
    start_noop: Start, leobench: Command, tmp_path: Path
) -> None:
    """How many a second the run itself says."""
    words = ("--endpoint", "completions", "--concurrency", "64", "--requests", "640", "--output-tokens", "256")
    told = leobench("run", "--url", start_noop(256, 1).url, *words, "--out", "run.json")
    assert told.code == 0, told.stderr
    run = result(tmp_path)
    assert run.summary["tokens"]["output"] == 640 * 256
    assert sum(len(record.chunk_times) for record in run.requests if not record.warmup) == 640 * 256


def test_help_names_every_command(leobench: Command) -> None:
    told = leobench("--help")
    assert told.code == 0
    for name in ("run", "sweep", "report", "compare", "simulate"):
        assert re.search(rf"^  {name} ", told.stdout, re.MULTILINE)
    assert leobench("--version").stdout == f"leobench {package.__version__}\n"
    assert leobench("race").code == 2


@pytest.mark.parametrize("name", ["run", "sweep", "report", "compare", "simulate"])
def test_without_aiohttp_what_needs_it_says_how_to_get_it_and_the_rest_works(name: str) -> None:
    words = [name, *{"run": [], "sweep": ["--values", "1"]}.get(name, ["--help"])]
    hidden = f"import sys; sys.modules['aiohttp'] = None; from leobench.cli import main; sys.exit(main({words}))"
    done = subprocess.run(
        [sys.executable, "-c", hidden], env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    if name in ("run", "sweep"):
        assert done.returncode == 2
        assert done.stderr == "leobench: error: aiohttp is missing; pip install 'leoserve[bench]' brings it\n"
    else:
        assert done.returncode == 0, done.stderr
