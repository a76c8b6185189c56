"""The pure parts of replay: what a file holds, how times move, the order of sending, and the ledger."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.errors import ConfigError
from streams.events import decode, iso, to_ms
from streams.recording import Line, Options, Plan, Shift, parsed, read_lines, record_of, shuffled
from streams.replay import Ledger, new_run

NOW_MS = 1_800_000_000_000


def event(exchange_id: str, at_ms: int | None = NOW_MS, stage: str = "request", **fields: Any) -> bytes:
    value: dict[str, Any] = {
        "schema": f"tidegate.{stage}.v1",
        "exchange_id": exchange_id,
        "messages": [{"role": "user", "content": "Hello"}],
        **fields,
    }
    if at_ms is not None:
        value["time"] = iso(at_ms)
    return orjson.dumps(value)


def decision(exchange_id: str, stage: str = "request", **fields: Any) -> bytes:
    return orjson.dumps(
        {
            "schema": "tidegate.decision.v1",
            "exchange_id": exchange_id,
            "tenant": "default",
            "stage": stage,
            "path": "stream",
            "content_hash": "c",
            "decision": "allow",
            **fields,
        }
    )


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("zipped", [False, True])
def test_lines_of_plain_and_zipped_files(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "events.jsonl"  # the content tells, not the name
    data = b"one\n\n two \nthree"
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert list(read_lines(path)) == [b"one", b"two", b"three"]


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_lines(tmp_path / "missing.jsonl"))
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_lines(cut))


def test_a_plan_counts_events_bad_lines_and_wanted_decisions() -> None:
    lines = [
        event("a", NOW_MS - 5000),
        event("a", NOW_MS - 4000),  # the same content again: one decision
        event("a", NOW_MS - 4000, messages=[{"role": "user", "content": "Other"}]),
        event("a", NOW_MS - 3000, "response"),
        event("a", NOW_MS, tenant="other"),
        b"not json",
        b'{"schema": "tidegate.request.v1"}',
    ]
    plan = Plan.of(lines)
    assert (plan.events, plan.bad, plan.span_ms) == (5, 2, 5000)
    assert sorted(plan.wanted.values()) == [1, 1, 2]


# ---------------------------------------------------------------- times


def test_times_move_by_one_constant_and_the_last_is_now() -> None:
    lines = [event("a", 1_000_000), event("b", 1_000_250), event("c", 1_060_000)]
    shift = Shift.of(Plan.of(lines), Options(), NOW_MS)
    moved = [decode(shift.apply(line.raw, line.event)) for line in parsed(lines) if line.event is not None]
    times = [to_ms(item.time) for item in moved if not isinstance(item, str)]
    assert times == [NOW_MS - 60_000, NOW_MS - 59_750, NOW_MS]


def test_unknown_fields_and_the_exact_fraction_survive_the_shift() -> None:
    raw = event("a", None, extra={"x": [1]}, time="2026-01-01T00:00:00.123456+02:00")
    line = next(parsed([raw]))
    assert line.event is not None
    value = orjson.loads(Shift(1000).apply(raw, line.event))
    assert value["time"] == "2025-12-31T22:00:01.123456Z"
    assert value["extra"] == {"x": [1]}


def test_an_event_without_time_is_sent_as_it_is() -> None:
    raw = event("a", None)
    line = next(parsed([raw]))
    assert line.event is not None
    assert Shift(1000).apply(raw, line.event) == raw
    assert Shift.of(Plan.of([raw]), Options(), NOW_MS).ms == 0


def test_keep_time_keeps_it() -> None:
    assert Shift.of(Plan.of([event("a", 1)]), Options(keep_time=True), NOW_MS).ms == 0


@given(st.floats(0.01, 100), st.lists(st.integers(0, 600_000), min_size=1, max_size=20))
def test_paced_by_recorded_time_no_event_lies_in_the_future_when_it_is_sent(speed: float, at: list[int]) -> None:
    plan = Plan.of(event(str(number), 1_000_000 + offset) for number, offset in enumerate(sorted(at)))
    assert plan.first_ms is not None
    shift = Shift.of(plan, Options(speed=speed), NOW_MS)
    for offset in at:
        sent_ms = NOW_MS + (1_000_000 + offset - plan.first_ms) / speed
        assert 1_000_000 + offset + shift.ms <= sent_ms + 1


# ---------------------------------------------------------------- order


def lines_at(*times_ms: int) -> list[Line]:
    return [Line(str(number).encode(), None, at) for number, at in enumerate(times_ms)]


@given(st.lists(st.integers(0, 100_000), max_size=50), st.floats(0.1, 20), st.integers(0, 5))
def test_a_shuffle_keeps_every_line_within_its_bounds(at: list[int], within_s: float, seed: int) -> None:
    lines = lines_at(*sorted(at))
    mixed = list(shuffled(lines, within_s, seed))
    assert sorted(mixed, key=lambda line: int(line.raw)) == lines
    assert mixed == list(shuffled(lines, within_s, seed))
    newest_ms = 0
    for line in mixed:
        newest_ms = max(newest_ms, line.at_ms)
        assert newest_ms - line.at_ms <= within_s * 1000


def test_without_a_shuffle_the_order_stays() -> None:
    lines = lines_at(3, 1, 2)
    assert list(shuffled(lines, 0, 1)) == lines


def test_records_go_to_their_topics_under_their_conversations() -> None:
    request, response, alone, bad, bad_response = (
        record_of(line, Shift(0), (("tidegate-run", b"r"),))
        for line in parsed(
            [
                event("a", conversation_id="c-1"),
                event("a", NOW_MS, "response", conversation_id="c-1"),
                event("b"),
                b"not json",
                b'{"schema": "tidegate.response.v1"}',
            ]
        )
    )
    assert (request.topic, request.key) == ("llm.requests", b"c-1")
    assert (response.topic, response.key) == ("llm.responses", b"c-1")
    assert (alone.topic, alone.key) == ("llm.requests", b"b")
    assert (bad.topic, bad.key, bad.value) == ("llm.requests", None, b"not json")
    assert bad_response.topic == "llm.responses"
    assert request.headers == (("tidegate-run", b"r"),)


# ---------------------------------------------------------------- the ledger


def ledger(*lines: bytes, run: str = "r") -> Ledger:
    return Ledger(Plan.of(lines), run)


def test_every_event_needs_one_decision_on_the_stream() -> None:
    book = ledger(event("a"), event("a", NOW_MS, "response"), event("b"))
    assert book.missing == 3
    assert not book.decision(decision("a", path="inline"))
    assert not book.decision(decision("unknown"))
    assert not book.decision(decision("a", tenant="other"))
    assert not book.decision(b"not json")
    assert not book.decision(None)
    assert book.missing == 3
    assert book.decision(decision("a"))
    assert book.decision(decision("a", "response", decision="block"))
    assert book.missing == 1
    assert dict(book.by_decision) == {"allow": 1, "block": 1}


def test_the_same_record_again_is_repeated_another_one_is_doubled() -> None:
    book = ledger(event("a"))
    book.decision(decision("a", timing={"total_ms": 1.0}))
    assert not book.decision(decision("a", timing={"total_ms": 2.0}))
    assert (book.repeated, book.doubled) == (1, 0)
    assert not book.decision(decision("a", decision="block"))
    assert (book.decisions, book.repeated, book.doubled, book.missing) == (1, 1, 1, 0)


def test_an_amendment_is_no_decision() -> None:
    book = ledger(event("a"))
    assert not book.decision(decision("a", schema="tidegate.amendment.v1", decision="block", revision=1))
    assert book.missing == 1
    book.decision(decision("a"))
    assert not book.decision(decision("a", schema="tidegate.amendment.v1", decision="block", revision=1))
    assert (book.decisions, book.repeated, book.doubled, book.missing) == (1, 0, 0, 0)


def test_a_standing_record_of_another_run_counts() -> None:
    book = ledger(event("a"))
    assert book.decision(decision("a", run="an earlier one"))
    assert book.missing == 0


def test_two_contents_under_one_id_need_two_decisions() -> None:
    book = ledger(event("a"), event("a", messages=[{"role": "user", "content": "Other"}]))
    assert book.decision(decision("a"))
    assert book.missing == 1
    assert book.decision(decision("a", content_hash="d"))
    assert book.missing == 0
    assert not book.decision(decision("a", content_hash="of somebody else"))
    assert (book.decisions, book.doubled) == (2, 0)


def test_dead_letters_count_once_per_place_and_only_of_this_run() -> None:
    book = ledger(event("a"))
    book.decision(decision("a"))
    book.letters_wanted = 1
    assert book.missing == 1
    letter = orjson.dumps({"topic": "llm.requests", "partition": 1, "offset": 7})
    assert not book.letter(letter, "another run")
    assert book.letter(letter, "r")
    assert not book.letter(letter, "r")
    assert (book.letters, book.missing) == (1, 0)


def test_run_ids_are_unique() -> None:
    assert len({new_run() for _ in range(100)}) == 100
