"""Exchanges through one guard's own `Guard.check`, as the engine would put them, with the time that it took.

A sample is checked one by one, for the latency of a single text; the rest in batches, for the throughput. Nothing is
checked twice, so no cache flatters either figure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

import msgspec
import numpy as np

from guards.artifacts import Artifacts
from guards.guard import Guard, Result
from guards.text import texts_of
from guards.types import Exchange, Failure, FailureCode, Hit, Stage, Unit

__all__ = ["BATCH", "MAX_SINGLES", "Outcome", "Run", "Speed", "run"]

BATCH: Final = 64  # as many as a worker takes at once
MAX_SINGLES: Final = 200
SINGLES_SHARE: Final = 0.2  # of the exchanges, up to `MAX_SINGLES`

Progress = Callable[[int], None]
"""Told how many more exchanges are done."""


class Outcome(msgspec.Struct, frozen=True):
    """What the guard says of one exchange. ``looked``: false where it has nothing to look at, which is no failure."""

    hits: tuple[Hit, ...] = ()
    failure: FailureCode | None = None
    looked: bool = True

    def score(self, kinds: frozenset[str] = frozenset()) -> float:
        """The highest finding (of these kinds, if any are named); 0 without one."""
        return max((hit.score for hit in self.hits if not kinds or hit.kind in kinds), default=0.0)


class Speed(msgspec.Struct, frozen=True):
    """``texts_per_s``: exchanges a second in batches; p50 and p95 of single ones. ``None`` where none were timed."""

    texts_per_s: float | None
    p50_ms: float | None
    p95_ms: float | None


class Run(msgspec.Struct, frozen=True):
    """One outcome per exchange, in order; times in milliseconds and seconds."""

    outcomes: tuple[Outcome, ...]
    singles_ms: tuple[float, ...] = ()
    batched: int = 0
    batched_s: float = 0.0

    def __add__(self, other: Run) -> Run:
        return Run(
            self.outcomes + other.outcomes,
            self.singles_ms + other.singles_ms,
            self.batched + other.batched,
            self.batched_s + other.batched_s,
        )

    @property
    def speed(self) -> Speed:
        done, took_s = self.batched, self.batched_s
        if not done:  # too few for a batch
            done, took_s = len(self.singles_ms), sum(self.singles_ms) / 1000
        p50, p95 = np.percentile(self.singles_ms, [50, 95]) if self.singles_ms else (None, None)
        return Speed(
            round(done / took_s, 1) if took_s else None,
            None if p50 is None else round(float(p50), 3),
            None if p95 is None else round(float(p95), 3),
        )


def run(
    guard: Guard,
    options: Any,
    exchanges: Sequence[Exchange],
    stage: Stage,
    artifacts: Artifacts,
    *,
    seed: int = 0,
    progress: Progress = lambda done: None,
    on_error: Callable[[BaseException], None] = lambda error: None,
) -> Run:
    """Put all exchanges to the guard; blocks. An exception of the guard is a failure, of which ``on_error`` is told."""
    units = [_units(guard, options, exchange, stage) for exchange in exchanges]
    judge = _Judge(guard, options, artifacts, on_error)
    outcomes: dict[int, Outcome] = {}
    singles_ms: list[float] = []
    count = min(MAX_SINGLES, round(len(units) * SINGLES_SHARE)) or min(len(units), 1)
    singles = set(random.Random(seed).sample(range(len(units)), count))  # noqa: S311 - a sample, no secret
    for number in sorted(singles):
        began = perf_counter()
        (outcomes[number],) = judge([units[number]])
        singles_ms.append((perf_counter() - began) * 1000)
        progress(1)
    rest = [number for number in range(len(units)) if number not in singles]
    batched_s = 0.0
    for begin in range(0, len(rest), BATCH):
        chosen = rest[begin : begin + BATCH]
        began = perf_counter()
        outcomes.update(zip(chosen, judge([units[number] for number in chosen]), strict=True))
        batched_s += perf_counter() - began
        progress(len(chosen))
    return Run(tuple(outcomes[number] for number in range(len(units))), tuple(singles_ms), len(rest), batched_s)


def _units(guard: Guard, options: Any, exchange: Exchange, stage: Stage) -> list[Unit]:
    texts = texts_of(exchange, stage)
    if guard.unit == "exchange":
        units = [Unit(texts, exchange, stage)]
    else:
        units = [Unit((text,), exchange, stage) for text in texts]
    return [unit for unit in units if guard.applies(unit, options)]


class _Judge:
    def __init__(
        self, guard: Guard, options: Any, artifacts: Artifacts, on_error: Callable[[BaseException], None]
    ) -> None:
        self._guard = guard
        self._options = options
        self._artifacts = artifacts
        self._on_error = on_error

    def __call__(self, batch: Sequence[Sequence[Unit]]) -> list[Outcome]:
        """The units of several exchanges → an outcome for each exchange."""
        results = iter(self._check([unit for units in batch for unit in units]))
        return [_outcome([next(results) for _ in units]) for units in batch]

    def _check(self, units: Sequence[Unit]) -> Sequence[Result]:
        if not units:
            return []
        needs = [self._guard.needs(unit, self._options) for unit in units]
        with suppress(Exception):  # the guard then asks for itself, text by text, and fails by itself
            self._artifacts.prepare(
                [text for need in needs for text in need.embed], [text for need in needs for text in need.parse]
            )
        try:
            results = self._guard.check(units, self._options, self._artifacts)
            if len(results) != len(units):
                raise RuntimeError(f"the guard gave {len(results)} results for {len(units)} units")
            return results
        except Exception as error:  # one bad text must not spoil the batch
            if len(units) == 1:
                self._on_error(error)
                return [Failure(FailureCode.ERROR)]
            return [result for unit in units for result in self._check([unit])]


def _outcome(results: Sequence[Result]) -> Outcome:
    """One text that could not be seen makes the exchange a failure, as in a decision."""
    hits: list[Hit] = []
    for result in results:
        if isinstance(result, Failure):
            return Outcome(failure=result.code)
        hits.extend(result)
    return Outcome(hits=tuple(hits), looked=bool(results))
