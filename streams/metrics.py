"""Every metric of Tidegate's own, in one place: name, kind, unit and meaning. Labels are bounded sets."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import Final
from weakref import WeakSet

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from guards.engine import Engine
from guards.screening import Screen

__all__ = [
    "AMENDMENTS",
    "CHECK_SECONDS",
    "COMMIT_AGE_SECONDS",
    "DEAD_LETTERS",
    "DECISIONS",
    "EVENTS",
    "GUARD_ERRORS",
    "GUARD_FAILURES",
    "HTTP_REQUESTS",
    "HTTP_SECONDS",
    "INFLIGHT",
    "PARKED",
    "POLICY_REFUSED",
    "POLICY_SWITCHES",
    "PUBLISH_DROPPED",
    "PUBLISH_FAILED",
    "PUBLISH_QUEUE",
    "REQUESTS_MISSING",
    "SCREENS",
    "SLOW_INFLIGHT",
    "SLOW_PASSED_OVER",
    "STORE_FAILED",
]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

EVENTS: Final = Counter("tidegate_events", "Events taken in from the topics.", ["topic"])
DEAD_LETTERS: Final = Counter("tidegate_dead_letters", "Records that could not be processed.", ["code"])
DECISIONS: Final = Counter("tidegate_decisions", "Decisions made, repeats included.", ["path", "stage", "decision"])
AMENDMENTS: Final = Counter("tidegate_amendments", "Amendments made by slow guards.", ["stage", "decision"])
SLOW_PASSED_OVER: Final = Counter("tidegate_slow_passed_over", "Events that no slow guard was shown.", ["reason"])
SLOW_INFLIGHT: Final = Gauge("tidegate_slow_inflight", "Exchanges that slow guards look at now.")
CHECK_SECONDS: Final = Histogram(
    "tidegate_check_duration_seconds",
    "Time of checking one exchange at one stage: inline until the answer, in the stream its batch's, in slow its own.",
    ["path", "stage"],
    buckets=_SECONDS,
)
GUARD_FAILURES: Final = Counter("tidegate_guard_failures", "A guard could not look.", ["guard", "code"])
GUARD_ERRORS: Final = Counter("tidegate_guard_errors", "Exceptions that guards raised.", ["guard"])
PARKED: Final = Gauge("tidegate_parked_responses", "Responses that wait for their request.")
REQUESTS_MISSING: Final = Counter("tidegate_requests_missing", "Responses judged without their request.")
COMMIT_AGE_SECONDS: Final = Gauge("tidegate_oldest_unacknowledged_seconds", "Age of the oldest event in flight.")
POLICY_SWITCHES: Final = Counter("tidegate_policy_switches", "Policy versions that came into force here.")
POLICY_REFUSED: Final = Counter("tidegate_policy_refused", "Policy versions that could not be used here.")
PUBLISH_DROPPED: Final = Counter(
    "tidegate_publish_dropped", "Inline events and decisions that did not reach the topics.", ["reason"]
)
PUBLISH_FAILED: Final = Counter("tidegate_publish_failed", "Attempts to publish that the broker did not acknowledge.")
PUBLISH_QUEUE: Final = Gauge("tidegate_publish_queue_length", "Inline events and decisions that wait to be published.")
STORE_FAILED: Final = Counter("tidegate_store_failed", "Commands that the store did not answer in time.", ["use"])
HTTP_REQUESTS: Final = Counter("tidegate_http_requests", "Requests answered.", ["route", "status"])
HTTP_SECONDS: Final = Histogram("tidegate_http_duration_seconds", "Time to answer.", ["route"], buckets=_SECONDS)
INFLIGHT: Final = Gauge("tidegate_inflight_checks", "Inline checks under way or waiting for a thread.")


class _Screens(Collector):
    """``tidegate_screen_texts_total{guard, outcome}``: what the screens before models did, summed over engines.

    ``asked`` went to the model, ``cleared`` did not; ``sampled`` checked the screen, ``missed`` of them held something.
    """

    def __init__(self) -> None:
        self._engines: WeakSet[Engine] = WeakSet()

    def add(self, engine: Engine) -> None:
        self._engines.add(engine)

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "tidegate_screen_texts", "Texts by what the screen before a model did.", labels=["guard", "outcome"]
        )
        tally: Tally[tuple[str, str]] = Tally()
        for engine in list(self._engines):
            for name, guard in engine.guards.items():
                screen = getattr(guard, "screen", None)
                if isinstance(screen, Screen):
                    counts = screen.counts
                    for outcome in counts.__struct_fields__:
                        tally[name, outcome] += getattr(counts, outcome)
        for labels, value in sorted(tally.items()):
            family.add_metric(labels, value)
        yield family


SCREENS: Final = _Screens()
REGISTRY.register(SCREENS)
