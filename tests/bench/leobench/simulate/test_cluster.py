"""Users, routers and replicas in simulated time: who is sent where, when, and what the cache then has."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

import pytest

from leobench.load import Load, Span
from leobench.records import RequestRecord
from leobench.simulate.cluster import REFUSAL, Cluster
from leobench.simulate.replica import Frontend, Replica, Setup
from leobench.simulate.routing import ROUTERS, LeastLoaded, PrefixAffine, router
from leobench.simulate.tokens import answer_ids, prompt_ids
from leobench.simulate.users import Users
from leobench.simulate.work import Cost, Work
from leobench.workloads import ESTIMATED, Planned, Workload
from leobench.workloads.chat import Conversations
from leobench.workloads.lengths import lengths
from leobench.workloads.synthetic import Synthetic
from leobench.workloads.traces import Row, Trace
from leoserve.engine.scheduler import SchedulerLimits


class Steady:
    """Every step takes ten milliseconds."""

    def cost(self, work: Work) -> Cost:
        return Cost(0.0, 0.0, 0.01)


def setup(*, sequences: int = 64, frontend: Frontend | None = None, max_waiting: int = 1024) -> Setup:
    limits = SchedulerLimits(max_sequences=sequences, max_tokens_per_step=2048, max_model_len=4096, block_size=16)
    frontend = frontend or Frontend()
    return Setup(limits=limits, num_blocks=4096, ahead=0, frontend=frontend, max_waiting=max_waiting)


def run(
    workload: Workload, load: Load, *, replicas: int = 1, routing: str = "random", own: Setup | None = None
) -> Cluster:
    cluster = Cluster([Replica(Steady(), own or setup()) for _ in range(replicas)], router(routing, 1))
    Users(cluster, load, workload).begin()
    cluster.run()
    for replica in cluster.replicas:
        replica.scheduler.check()
    return cluster


def texts(prompt: str = "100", answer: str = "20") -> Synthetic:
    return Synthetic(lengths(prompt), lengths(answer), 1, "none", ESTIMATED)


def conversations(*, think: str = "0") -> Conversations:
    return Conversations(lengths("4"), lengths(think), 160, lengths("40"), lengths("64"), 1, "none", ESTIMATED)


def most_at_once(records: list[RequestRecord]) -> int:
    changes = sorted([(record.sent, 1) for record in records] + [(record.ended, -1) for record in records])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def test_a_request_alone_takes_a_step_for_each_token() -> None:
    cluster = run(texts(answer="5"), Load("closed", concurrency=Span(1, 1), requests=3))
    assert [record.output_tokens for record in cluster.records] == [5, 5, 5]
    for record in cluster.records:
        assert record.first is not None
        assert record.first - record.intended == pytest.approx(0.01)
        assert record.chunk_times == pytest.approx([record.intended + 0.01 * step for step in range(1, 6)])
        assert record.ended == record.last == record.chunk_times[-1]
    assert cluster.records[1].intended == pytest.approx(cluster.records[0].ended)


def test_a_closed_loop_has_as_many_users_as_it_says() -> None:
    cluster = run(texts(), Load("closed", concurrency=Span(7, 7), requests=100))
    assert len(cluster.records) == 100
    assert most_at_once(cluster.records) == 7


def test_a_ramp_adds_users() -> None:
    cluster = run(texts(), Load("ramp", concurrency=Span(1, 9), duration=20.0))
    first = [record for record in cluster.records if record.sent < 2]
    last = [record for record in cluster.records if record.sent > 18]
    assert most_at_once(first) <= 2
    assert most_at_once(last) >= 8


def test_an_open_loop_sends_when_it_says_however_late_the_answers_are() -> None:
    load = Load("poisson", rate=Span(200, 200), requests=300, seed=3)
    cluster = run(texts(), load, own=setup(sequences=2))
    expected = [when for when, _ in zip(load.arrivals(), range(300), strict=False)]
    assert [record.intended for record in cluster.records] == expected
    waits = [record.first - record.intended for record in cluster.records if record.first is not None]
    assert waits[-1] > 100 * waits[0]


def test_a_trace_runs_at_its_own_times_and_faster() -> None:
    rows = [Row(arrival=when, output_tokens=3, input_tokens=20) for when in (5.0, 5.5, 9.0)]
    trace = Trace(Path("trace.csv"), rows, 1, "none", ESTIMATED)
    cluster = run(trace, Load("trace", speed=2.0))
    assert [record.intended for record in cluster.records] == [0.0, 0.25, 2.0]


def test_users_think_between_turns() -> None:
    cluster = run(conversations(think="3"), Load("closed", concurrency=Span(5, 5), requests=40))
    by_session: dict[int | None, list[RequestRecord]] = {}
    for record in cluster.records:
        by_session.setdefault(record.session, []).append(record)
    for turns in by_session.values():
        assert [record.turn for record in turns] == list(range(len(turns)))
        for earlier, later in zip(turns, turns[1:], strict=False):
            assert later.intended == pytest.approx(earlier.ended + 3)


def test_a_later_turn_begins_with_all_that_was_said() -> None:
    planned = [turn for turn, _ in zip(conversations().requests(), range(4), strict=False)]
    for earlier, later in zip(planned, planned[1:], strict=False):
        said = prompt_ids(earlier) + answer_ids(earlier)
        assert prompt_ids(later)[: len(said)] == said
    other = next(turn for turn in conversations().requests() if turn.session == 1)
    assert prompt_ids(other)[:160] == prompt_ids(planned[0])[:160]
    assert prompt_ids(other)[160] != prompt_ids(planned[0])[160]


def test_the_cache_has_what_was_said_before() -> None:
    cluster = run(conversations(), Load("closed", concurrency=Span(1, 1), requests=8))
    for earlier, later in zip(cluster.records, cluster.records[1:], strict=False):
        assert earlier.prompt_tokens is not None
        assert later.cached_tokens is not None
        if later.turn:
            assert later.cached_tokens == (earlier.prompt_tokens + 64 - 1) // 16 * 16
        else:
            assert later.cached_tokens == 160  # the system message


def test_prefix_affine_routing_finds_more_in_the_caches_than_chance() -> None:
    """Of the conversations' own turns, beyond the system message that every replica soon has."""

    def cached(routing: str) -> float:
        load = Load("closed", concurrency=Span(32, 32), requests=400)
        found = run(conversations(think="1"), load, replicas=8, routing=routing)
        return statistics.mean(record.cached_tokens or 0 for record in found.records if record.turn)

    assert cached("prefix-affine") > 1.3 * cached("random")


@pytest.mark.parametrize("routing", ROUTERS)
def test_every_replica_gets_its_share(routing: str) -> None:
    load = Load("closed", concurrency=Span(64, 64), requests=2000)
    counts = Counter(record.url for record in run(texts(), load, replicas=4, routing=routing).records)
    assert all(400 < counts[place] < 600 for place in range(4)), counts


def test_a_prefix_that_all_share_does_not_crowd_one_replica() -> None:
    affine = PrefixAffine()
    outstanding = [0] * 4
    for index in range(400):
        planned = Planned(index, "chat", "", 100, 10, prefix=(("system", 90),))
        outstanding[affine.choose(planned, outstanding)] += 1
    assert max(outstanding) <= 1.25 * 100 + 2


def test_least_loaded_takes_the_one_with_the_least_to_do() -> None:
    least = LeastLoaded()
    planned = Planned(0, "chat", "", 100, 10)
    assert least.choose(planned, [3, 1, 2]) == 1
    assert least.choose(planned, [1, 1, 1]) == 2


def test_what_is_refused_is_an_error_as_a_client_sees_it() -> None:
    own = setup(sequences=1, max_waiting=2)
    cluster = run(texts(), Load("poisson", rate=Span(1000, 1000), requests=50), own=own)
    refused = [record for record in cluster.records if record.error]
    assert {record.error for record in refused} == {"http 429"}
    assert all(record.ended == pytest.approx(record.sent + REFUSAL) for record in refused)
    too_long = run(texts(prompt="5000"), Load("closed", concurrency=Span(1, 1), requests=2))
    assert [record.error for record in too_long.records] == ["http 400", "http 400"]


def test_the_way_to_the_engine_and_back_takes_time() -> None:
    """2 ms to the engine; each token of a step 1 ms after the other."""
    own = setup(frontend=Frontend(request=2e-3, token=1e-3))
    cluster = run(texts(answer="3"), Load("closed", concurrency=Span(4, 4), requests=4), own=own)
    for record in cluster.records:
        assert record.chunk_times == pytest.approx([0.002 + 0.01 * step + 0.004 for step in range(1, 4)])


def test_samples_tell_of_every_replica_through_time() -> None:
    cluster = run(texts(), Load("closed", concurrency=Span(8, 8), requests=400), replicas=2)
    ends = max(record.ended for record in cluster.records)
    for place in range(2):
        samples = [sample for sample in cluster.samples if sample.url == place]
        assert samples[0].time == 0
        assert samples[-1].time >= ends - 0.1
        assert any(sample.running for sample in samples)
        tokens = [sample.generation_tokens for sample in samples]
        assert tokens == sorted(tokens, key=lambda count: count or 0)
    last = {sample.url: sample.generation_tokens or 0 for sample in cluster.samples}
    assert sum(last.values()) == sum(record.output_tokens or 0 for record in cluster.records)
