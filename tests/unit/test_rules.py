"""Alert rules and what is published of them: thresholds, hysteresis, once only, catching up, taking over."""

from __future__ import annotations

from typing import Any

import pytest

from guards.errors import PolicyError
from guards.policy import configs_folder
from streams.events import iso
from streams.monitor.alerts import Alerts, alert_key
from streams.monitor.rules import Group, load_rules, parse_rules
from streams.monitor.view import View
from streams.monitor.windows import Addition, Book, Series, Source
from streams.records import Alert

START_MS = 1_790_000_000_000
ACME = Series("acme", "support", "gpt-4o")
NOTIFY_MAX_AGE_MS = 300_000
RULES = """
rules:
  - {name: error-rate, metric: error_rate, windows: [1m, 5m], threshold: 0.1, resolve: 0.05, for_s: 10, min_events: 20}
  - {name: latency-p95, metric: duration_p95_ms, windows: [5m], threshold: 5000, resolve: 4000, min_events: 5}
blocks: {quiet_s: 60, update_s: 15}
"""


class Bench:
    """Traffic into a partition of responses and one of decisions, by the second; an evaluator tells what is due."""

    def __init__(self, rules: str = RULES) -> None:
        self.rules = parse_rules(rules, "alerts.yaml")
        self.alerts = Alerts(self.rules)
        self.view = View(bucket_ms=5_000, retention_ms=7_200_000, idle_ms=5_000)
        self.book = _book("llm.responses")
        self.decisions = _book("llm.decisions")
        self.now_ms = START_MS
        self.told: list[Alert] = []

    def second(self, *, ok: int = 0, errors: int = 0, blocks: int = 0, ms: float = 100, series: Series = ACME) -> None:
        for number in range(ok + errors):
            counters = {"responses": 1, "errors": int(number >= ok)}
            self._add(Addition(series, self.now_ms, counters=counters, samples={"duration_ms": ms}))
            self._decide(series, {"decision:stream:response:allow": 1})
        for _ in range(blocks):
            counters = {"decision:stream:request:block": 1, "block:request:block-injection": 1}
            self._decide(series, counters)
        for book in (self.book, self.decisions):
            for record in [*book.bucket_records(), book.totals_record()]:
                self.view.apply(*record)
            book.flushed()
        self.evaluate(self.now_ms)
        self.now_ms += 1_000

    def _decide(self, series: Series, counters: dict[str, int]) -> None:
        self.decisions.apply(self.decisions.next_offset, Addition(series, self.now_ms, counters=counters), self.now_ms)

    def _add(self, addition: Addition, wall_ms: int | None = None) -> None:
        self.book.apply(self.book.next_offset, addition, self.now_ms if wall_ms is None else wall_ms)

    def seconds(self, number: int, **traffic: Any) -> None:
        for _ in range(number):
            self.second(**traffic)

    def evaluate(self, wall_ms: int) -> None:
        self.alerts.tick(self.view, wall_ms)
        due = self.alerts.due(self.view, wall_ms, notify_max_age_ms=NOTIFY_MAX_AGE_MS)
        self.alerts.published(due)
        self.told += due

    def hand_over(self) -> None:
        """Another evaluator: it knows what llm.alerts says, and nothing else."""
        self.alerts = Alerts(self.rules)
        self.alerts.restore({alert.key: alert for alert in self.told}.values())

    @property
    def says(self) -> list[tuple[str, str]]:
        return [(alert.key, alert.status) for alert in self.told]


def _book(topic: str) -> Book:
    return Book(Source(topic, 0), 1, bucket_ms=5_000, retention_ms=7_200_000, lateness_ms=60_000)


ERRORS = "error-rate:acme/support"
BLOCKS = "blocks:acme/support/block-injection"


def test_errors_fire_once_and_resolve_below_the_lower_threshold() -> None:
    bench = Bench()
    bench.seconds(60, ok=5)
    assert bench.says == []
    bench.seconds(60, ok=3, errors=2)
    assert bench.says == [(ERRORS, "firing")]
    alert = bench.told[0]
    assert alert.labels == {"tenant": "acme", "route": "support"}
    assert alert.value >= alert.threshold == 0.1
    bench.seconds(100, ok=15, errors=1)  # 6 %: between the thresholds
    assert bench.says == [(ERRORS, "firing")]
    bench.seconds(80, ok=10)
    assert bench.says == [(ERRORS, "firing"), (ERRORS, "resolved")]
    assert bench.told[1].starts_at == alert.starts_at
    assert bench.told[1].ends_at is not None


def test_a_short_peak_does_not_fire() -> None:
    bench = Bench()
    bench.seconds(60, ok=5)
    bench.seconds(5, errors=5)
    bench.seconds(60, ok=100)
    assert bench.says == []


def test_few_events_do_not_fire() -> None:
    bench = Bench()
    bench.seconds(19, errors=1)
    bench.seconds(30)
    assert bench.says == []


def test_silence_resolves_in_wall_time() -> None:
    bench = Bench()
    bench.seconds(60, errors=1)
    assert bench.says == [(ERRORS, "firing")]
    bench.seconds(75)  # no traffic at all
    assert bench.says == [(ERRORS, "firing"), (ERRORS, "resolved")]


def test_latency_is_the_95th_percentile() -> None:
    bench = Bench()
    bench.seconds(20, ok=1, ms=1000)
    assert bench.says == []
    bench.seconds(20, ok=1, ms=9000)
    assert bench.says == [("latency-p95:acme/support", "firing")]
    assert bench.told[0].value == pytest.approx(9000, rel=0.01)


def test_blocks_alert_once_while_they_last_with_a_count() -> None:
    bench = Bench()
    bench.seconds(10, ok=1)
    bench.seconds(40, blocks=3)
    firing = [alert for alert in bench.told if alert.key == BLOCKS]
    assert {alert.status for alert in firing} == {"firing"}
    assert len({alert.starts_at for alert in firing}) == 1
    assert 2 <= len(firing) <= 4  # told again as the count grows, every 15 s at most
    assert [alert.count for alert in firing] == sorted({alert.count or 0 for alert in firing})
    bench.seconds(30, ok=1)
    bench.seconds(10, blocks=1)  # within a minute: the same episode
    bench.seconds(70, ok=1)
    last = bench.told[-1]
    assert (last.key, last.status, last.count) == (BLOCKS, "resolved", 130)
    assert last.starts_at == firing[0].starts_at
    assert last.labels == {"tenant": "acme", "route": "support", "rule": "block-injection"}


def test_a_long_episode_keeps_its_count_when_buckets_are_dropped() -> None:
    bench = Bench()
    for _ in range(3 * 3_600 // 30):
        bench.second(blocks=1)
        bench.now_ms += 29_000
    bench.seconds(70, ok=1)
    assert (bench.told[-1].status, bench.told[-1].count) == ("resolved", bench.told[-2].count)
    assert 355 <= (bench.told[-2].count or 0) <= 360  # the last update may lack what came within 15 s


def test_replays_have_alerts_of_their_own() -> None:
    bench = Bench()
    bench.seconds(60, errors=1, series=Series("acme", "support", "gpt-4o", run="run-1"))
    (alert,) = bench.told
    assert (alert.key, alert.run) == (f"{ERRORS}#run-1", "run-1")


def test_a_new_evaluator_does_not_fire_again_what_fires() -> None:
    bench = Bench()
    bench.seconds(60, ok=1, errors=1, blocks=1)
    before = bench.says
    assert {key for key, _ in before} == {ERRORS, BLOCKS}
    bench.hand_over()
    bench.evaluate(bench.now_ms)
    assert bench.says == before
    bench.seconds(80, ok=20)
    after = bench.told[len(before) :]
    assert all(alert.starts_at == bench.told[0].starts_at for alert in after if alert.key == BLOCKS)
    assert {alert.key for alert in after if alert.status == "resolved"} == {ERRORS, BLOCKS}
    assert [alert.key for alert in after if alert.status == "firing"] == [BLOCKS]  # its count had grown
    assert after[0].count == 60
    bench.hand_over()
    bench.evaluate(bench.now_ms)
    assert len(bench.told) == len(before) + len(after)


def test_what_is_no_rule_any_more_is_resolved() -> None:
    bench = Bench()
    bench.seconds(60, errors=1)
    bench.rules = parse_rules("{}", "alerts.yaml")
    bench.hand_over()
    bench.evaluate(bench.now_ms)
    assert bench.says == [(ERRORS, "firing"), (ERRORS, "resolved")]


def test_while_catching_up_nothing_is_told_and_what_still_holds_is_told_once() -> None:
    bench = Bench()
    wall_ms = START_MS + 3_600_000
    for _ in range(200):  # a backlog: an hour old, and it comes and goes
        bench._add(Addition(ACME, bench.now_ms, counters={"responses": 20, "errors": 20}), wall_ms)
        bench.now_ms += 1_000
    for number in range(3_400 // 5):
        failing = number > 600
        counters = {"responses": 100, "errors": 100 if failing else 0}
        bench._add(Addition(ACME, bench.now_ms, counters=counters), wall_ms)
        for record in [*bench.book.bucket_records(), bench.book.totals_record()]:
            bench.view.apply(*record)
        bench.book.flushed()
        bench.evaluate(wall_ms)
        if wall_ms - bench.now_ms > NOTIFY_MAX_AGE_MS:
            assert bench.says == []
        bench.now_ms += 5_000
    assert bench.says == [(ERRORS, "firing")]


def test_keys_cannot_be_forged() -> None:
    assert alert_key("error-rate", Group("a/b", "c")) != alert_key("error-rate", Group("a", "b/c"))
    assert alert_key("error-rate", Group("a", "b#run")) != alert_key("error-rate", Group("a", "b", "run"))


def test_the_stock_rules_are_sound() -> None:
    rules = load_rules(configs_folder() / "alerts.yaml")
    assert [rule.name for rule in rules.rules] == ["error-rate", "latency-p95", "block-rate"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [{name: a, metric: error_rate, windows: [1m], treshold: 1, resolve: 0}]", "did you mean 'threshold'"),
        ("rules: [{name: a, metric: error_rate, windows: [2m], threshold: 1, resolve: 0}]", "rules.0.windows.0"),
        (
            "rules: [{name: a, metric: error_rate, windows: [1m], threshold: 1, resolve: 2}]",
            "resolve must not be above",
        ),
        ("rules: [{name: blocks, metric: error_rate, windows: [1m], threshold: 1, resolve: 0}]", "is taken"),
        ("block: {}", "did you mean 'blocks'"),
    ],
)
def test_faults_are_told_with_their_path(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as fault:
        parse_rules(text, "alerts.yaml")
    assert message in str(fault.value)


def test_alert_times_are_event_times() -> None:
    bench = Bench()
    bench.seconds(30, errors=1)
    assert iso(START_MS) <= bench.told[0].starts_at <= bench.told[0].time <= iso(bench.now_ms)


def test_blocks_in_a_backlog_are_seen_though_the_answers_are_far_ahead() -> None:
    bench = Bench()
    series = Series("acme", "support", "gpt-4o", run="replay-1")
    bench.book.apply(0, Addition(series, START_MS + 3_600_000, counters={"responses": 1}), START_MS)
    bench.second(blocks=1, series=series)
    assert [(alert.key, alert.status, alert.run) for alert in bench.told] == [
        (f"{BLOCKS}#replay-1", "firing", "replay-1")
    ]


def test_a_replay_of_old_events_is_told_and_an_old_backlog_is_not() -> None:
    for series, told in ((Series("acme", "support", run="replay-1"), 1), (Series("acme", "support"), 0)):
        bench = Bench()
        old = Addition(series, START_MS - 10 * NOTIFY_MAX_AGE_MS, counters={"block:request:block-injection": 1})
        bench.decisions.apply(0, old, START_MS)
        bench.view.apply(*bench.decisions.bucket_records()[0])
        bench.view.apply(*bench.decisions.totals_record())
        bench.evaluate(START_MS)
        assert len(bench.told) == told
