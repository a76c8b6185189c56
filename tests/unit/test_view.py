"""The view: merging over source partitions, event time, horizons, retention, and what is told of it."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from guards.errors import ConfigError
from streams.events import iso, to_ms
from streams.monitor.facts import addition_of, dead, duplicate, read, series_of
from streams.monitor.prices import parse_prices
from streams.monitor.report import metrics_record, series_path, total_json, windows_json
from streams.monitor.view import View
from streams.monitor.windows import Addition, Book, Series, Source

BUCKET_MS = 5_000
RETENTION_MS = 7_200_000
IDLE_MS = 5_000
NOW_MS = to_ms(datetime(2026, 11, 24, 10, 0, 2, tzinfo=UTC))
ACME = Series("acme", "support", "gpt-4o", "support", "12")
GLOBEX = Series("globex", "chat", "gpt-4o-mini")
PRICES = parse_prices("providers: {openai: {gpt-4o: [{from: 2024-10-02, input: 2.5, output: 10}]}}", "prices")


def new_view() -> View:
    return View(bucket_ms=BUCKET_MS, retention_ms=RETENTION_MS, idle_ms=IDLE_MS)


def new_book(partition: int = 0, topic: str = "llm.requests") -> Book:
    return Book(Source(topic, partition), 1, bucket_ms=BUCKET_MS, retention_ms=RETENTION_MS, lateness_ms=60_000)


def request(series: Series, time_ms: int) -> Addition:
    return Addition(series, time_ms, {"requests": 1}, {"requests": 1}, timed=True)


def flush(book: Book, view: View) -> None:
    for record in [*book.bucket_records(), book.totals_record()]:
        view.apply(*record)
    book.flushed()


def filled(times_ms: list[int], *, counted_at_ms: int = NOW_MS, series: Series = ACME) -> View:
    view, book = new_view(), new_book()
    for offset, time_ms in enumerate(times_ms):
        book.apply(offset, request(series, time_ms), counted_at_ms)
    flush(book, view)
    return view


def requests_in(view: View, **options: Any) -> int:
    answer = windows_json(view, **{"now_ms": NOW_MS, **options})
    return sum(series["requests"] for series in answer["series"])


@pytest.mark.parametrize(("horizon", "width_ms"), [("1m", 60_000), ("5m", 300_000), ("1h", 3_600_000)])
def test_a_window_is_exactly_its_horizon_up_to_as_of(horizon: str, width_ms: int) -> None:
    rng = random.Random(3)
    times = [NOW_MS - rng.randrange(RETENTION_MS - BUCKET_MS) for _ in range(3_000)] + [NOW_MS]
    view, books = new_view(), [new_book(0), new_book(1)]
    for number, time_ms in enumerate(times):
        book = books[number % 2]
        book.apply(book.next_offset, request(ACME, time_ms), NOW_MS)
        if number % 500 == 0:
            flush(book, view)
    for book in books:
        flush(book, view)
    answer = windows_json(view, horizon=horizon, now_ms=NOW_MS)
    assert answer["as_of"] == "2026-11-24T10:00:05.000Z"
    end_ms = to_ms(datetime.fromisoformat(answer["as_of"]))
    (series,) = answer["series"]
    assert series["requests"] == sum(end_ms - width_ms <= time_ms < end_ms for time_ms in times)


def test_at_asks_for_another_time_and_a_border_ends_its_window() -> None:
    view = filled([NOW_MS - 120_000, NOW_MS])
    assert requests_in(view, at_ms=NOW_MS - 100_000) == 1
    border_ms = NOW_MS - NOW_MS % BUCKET_MS
    assert windows_json(view, at_ms=border_ms, now_ms=NOW_MS)["as_of"] == iso(border_ms)
    assert requests_in(view, at_ms=border_ms) == 0


def test_right_after_a_replay_its_last_minute_shows_and_then_it_runs_empty() -> None:
    years_ago_ms = NOW_MS - 3 * 365 * 86_400_000
    view = filled([years_ago_ms - 90_000, years_ago_ms - 30_000, years_ago_ms])
    assert requests_in(view) == 2
    assert requests_in(view, now_ms=NOW_MS + IDLE_MS) == 2
    assert requests_in(view, now_ms=NOW_MS + IDLE_MS + 40_000) == 1
    assert requests_in(view, now_ms=NOW_MS + IDLE_MS + 70_000) == 0
    assert view.as_of_ms(NOW_MS + IDLE_MS + 70_000) == years_ago_ms + 70_000


def test_an_idle_partition_does_not_hold_event_time() -> None:
    view, idle, busy = new_view(), new_book(0), new_book(1)
    idle.apply(0, request(ACME, NOW_MS - 600_000), NOW_MS - 600_000)
    busy.apply(0, request(ACME, NOW_MS - 200), NOW_MS)
    flush(idle, view)
    flush(busy, view)
    assert view.as_of_ms(NOW_MS) == NOW_MS - 200


def test_nothing_counted_is_now() -> None:
    view = new_view()
    assert view.as_of_ms(NOW_MS) == NOW_MS
    assert windows_json(view, now_ms=NOW_MS)["series"] == []
    assert total_json(view)["total"]["requests"] == 0


def test_runs_are_shown_merged_unless_asked() -> None:
    view, book = new_view(), new_book()
    for offset, run in enumerate(["", "run-1", "run-1"]):
        book.apply(offset, request(Series("acme", "support", "m", run=run), NOW_MS), NOW_MS)
    flush(book, view)
    assert requests_in(view) == 3
    assert len(windows_json(view, now_ms=NOW_MS)["series"]) == 1
    assert requests_in(view, run="run-1") == 2
    assert requests_in(view, run="") == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, 2),
        ("acme", 1),
        ("acme/support", 1),
        ("*/chat", 1),
        ("*/*/gpt-4o", 1),
        ("acme/support/gpt-4o/12", 1),
        ("acme/support/gpt-4o/13", 0),
        ("acm", 0),
    ],
)
def test_series_are_filtered_by_prefix(text: str | None, number: int) -> None:
    view, book = new_view(), new_book()
    book.apply(0, request(ACME, NOW_MS), NOW_MS)
    book.apply(1, request(GLOBEX, NOW_MS), NOW_MS)
    flush(book, view)
    assert len(windows_json(view, series=text, now_ms=NOW_MS)["series"]) == number


def test_a_slash_inside_a_name_is_escaped() -> None:
    series = Series("acme", "v1/chat", "meta/llama")
    assert series_path(series) == "acme/v1%2Fchat/meta%2Fllama/"
    assert requests_in(filled([NOW_MS], series=series), series="acme/v1%2Fchat/meta%2Fllama") == 1


def test_faults_of_a_query_are_named() -> None:
    with pytest.raises(ConfigError, match="no horizon"):
        windows_json(new_view(), horizon="2m", now_ms=NOW_MS)
    with pytest.raises(ConfigError, match="%2F"):
        windows_json(new_view(), series="a/b/c/d/e", now_ms=NOW_MS)


def test_buckets_past_retention_are_dropped_and_totals_stay() -> None:
    view, book = new_view(), new_book()
    for offset in range(4_000):
        book.apply(offset, request(ACME, NOW_MS + offset * BUCKET_MS), NOW_MS)
        flush(book, view)
    assert len(view._cells) <= RETENTION_MS // BUCKET_MS + 13
    assert len(view._fine[ACME]) <= RETENTION_MS // BUCKET_MS + 13
    assert len(view._coarse[ACME]) <= RETENTION_MS // 60_000 + 3
    assert view.totals() == {"requests": 4_000}


def test_the_answer_has_the_agreed_shape() -> None:
    view = new_view()
    events: list[tuple[str, dict[str, Any]]] = [
        ("llm.requests", {"schema": "tidegate.request.v1", "exchange_id": "x", "messages": [], **LABELS}),
        (
            "llm.responses",
            {
                "schema": "tidegate.response.v1",
                "exchange_id": "x",
                "messages": [],
                **LABELS,
                "usage": {"input_tokens": 41, "output_tokens": 118},
                "timing": {"duration_ms": 1830.0},
            },
        ),
        (
            "llm.decisions",
            {
                "schema": "tidegate.decision.v1",
                "exchange_id": "x",
                "conversation_id": "x",
                "tenant": "acme",
                "stage": "request",
                "path": "stream",
                "content_hash": "0",
                "time": iso(NOW_MS),
                "decision": "block",
                "policy": {"name": "default", "version": "1"},
                "labels": {"tenant": "acme", "route": "support", "model": "gpt-4o", "prompt_name": "support"}
                | {"prompt_version": "12"},
                "reasons": [
                    {"guard": "injection", "kind": "injection", "rule": "block-injection", "score": 0.9}
                    | {"threshold": 0.8, "action": "block"},
                    {"guard": "pii", "kind": "failure:timeout", "rule": "pii", "score": 1, "threshold": 0}
                    | {"action": "flag"},
                ],
            },
        ),
    ]
    for topic, event in events:
        book = new_book(topic=topic)
        fact = read(topic, json_bytes(event), NOW_MS)
        assert not hasattr(fact, "code"), fact
        labels = fact.labels()  # type: ignore[union-attr]
        series = series_of(labels, "", lambda _: True)
        book.apply(0, addition_of(fact, labels, series, PRICES, list(fact.once)), NOW_MS)  # type: ignore[union-attr,arg-type]
        book.apply(1, duplicate(fact), NOW_MS)  # type: ignore[arg-type]
        book.apply(2, dead(), NOW_MS)
        flush(book, view)
    assert windows_json(view, now_ms=NOW_MS) == {
        "as_of": "2026-11-24T10:00:05.000Z",
        "horizon": "1m",
        "series": [
            {
                "tenant": "acme",
                "route": "support",
                "model": "gpt-4o",
                "prompt": {"name": "support", "version": "12"},
                "requests": 1,
                "responses": 1,
                "errors": 0,
                "input_tokens": 41,
                "output_tokens": 118,
                "cost_usd": (41 * 2.5 + 118 * 10) / 1e6,
                "unpriced": 0,
                "duration_ms": {"p50": approx(1830), "p95": approx(1830), "p99": approx(1830)},
                "time_to_first_token_ms": None,
                "decisions": {"stream": {"request": {"block": 1}}, "inline": {}},
                "findings": {"injection:injection": 1},
                "blocks": {"request:block-injection": 1},
            }
        ],
        "counted": {topic: {"0": 3} for topic in ("llm.decisions", "llm.requests", "llm.responses")},
    }
    assert total_json(view)["total"] == {
        "requests": 1,
        "responses": 1,
        "errors": 0,
        "input_tokens": 41,
        "output_tokens": 118,
        "late": 0,
        "deduplicated": 2,  # a repeated decision record is expected, and silent
        "dead": 3,
    }
    assert view.take_changed() == {ACME}
    assert view.take_changed() == set()
    assert metrics_record(view, ACME, view.end_ms(NOW_MS))["windows"]["1h"]["requests"] == 1


LABELS = {
    "tenant": "acme",
    "route": "support",
    "provider": "openai",
    "model": "gpt-4o",
    "prompt": {"name": "support", "version": "12"},
    "time": iso(NOW_MS),
}


def json_bytes(value: dict[str, Any]) -> bytes:
    import orjson

    return orjson.dumps(value)


def approx(value: float) -> Any:
    return pytest.approx(value, rel=0.011)


@pytest.mark.parametrize(
    ("topic", "event", "code"),
    [
        ("llm.requests", {"schema": "tidegate.response.v1", "exchange_id": "x", "messages": []}, "wrong_topic"),
        ("llm.requests", {"schema": "tidegate.request.v1"}, "missing_field"),
        ("llm.decisions", {"schema": "tidegate.decision.v1"}, "bad_value"),
    ],
)
def test_what_cannot_be_read_is_dead(topic: str, event: dict[str, Any], code: str) -> None:
    assert read(topic, json_bytes(event), NOW_MS).code == code  # type: ignore[union-attr]


def test_an_absurd_time_gives_way_to_the_records() -> None:
    def time_of(time: str) -> int:
        event = {"schema": "tidegate.request.v1", "exchange_id": "x", "messages": [], "time": time}
        return read("llm.requests", json_bytes(event), NOW_MS).time_ms  # type: ignore[union-attr]

    assert time_of("2999-01-01T00:00:00Z") == NOW_MS
    assert time_of("2026-11-24T11:00:00Z") == NOW_MS + 3_598_000
    assert time_of("2023-11-16T18:15:46.680Z") == 1_700_158_546_680


def test_a_response_takes_what_it_lacks_from_its_request() -> None:
    event = {"schema": "tidegate.response.v1", "exchange_id": "x", "messages": [], "tenant": "acme", "model": "other"}
    fact = read("llm.responses", json_bytes(event), NOW_MS)
    whole = read("llm.requests", json_bytes({**event, **LABELS, "schema": "tidegate.request.v1"}), NOW_MS)
    assert fact.request_claim == whole.claim == ("request", "acme", "x")  # type: ignore[union-attr]
    labels = fact.labels(whole.labels())  # type: ignore[union-attr]
    assert (labels.route, labels.model, labels.prompt_version) == ("support", "other", "12")
