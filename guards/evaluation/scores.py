"""Figures of scores against labels: precision and its kin at a threshold, AP, AUC, thresholds, bootstrap intervals.

Everything takes weights, how often each row counts. A bootstrap resample is a row of weights, so a thousand of them are
one matrix, and the figures of all come out of the same few array operations. What cannot be computed (no positive row,
nothing found) is NaN in arrays and ``None`` in `Rates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Interval",
    "Rates",
    "Suggestion",
    "Wanted",
    "average_precision",
    "intervals_of",
    "parse_wanted",
    "rates_of",
    "resamples",
    "roc_auc",
    "rounded",
    "suggest",
]

Array = npt.NDArray[Any]
Interval = tuple[float, float] | None

CHUNK_CELLS: Final = 4_000_000  # of a chunk of resamples: 32 MB of float64
CONFIDENCE: Final = 0.95
DIGITS: Final = 4


class Rates(msgspec.Struct, frozen=True):
    """``precision``: of what was found, the share that is right; ``recall``: of what is there, the share found."""

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    f2: float | None = None


class Wanted(msgspec.Struct, frozen=True):
    """What a threshold is to reach: at least this precision or recall, or at most this false-positive rate."""

    figure: Literal["precision", "recall", "fpr"]
    value: float


class Suggestion(msgspec.Struct, frozen=True):
    """The threshold that reaches ``wanted`` and finds most; ``None`` where no threshold does."""

    wanted: str
    threshold: float | None
    precision: float | None = None
    recall: float | None = None
    fpr: float | None = None


def rounded(value: float) -> float | None:
    """To four decimals; NaN becomes ``None``."""
    return None if np.isnan(value) else round(float(value), DIGITS)


def _ratio(above: Array, below: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


def rates_of(hits: Array, found: Array, there: Array) -> Array:
    """Counts (right ones, all found, all there), of any one shape → precision, recall, F1, F2 along a last axis.

    With nothing found there is no precision, but F is 0 if there was something to find.
    """
    hits, found, there = (np.asarray(counts, dtype=np.float64) for counts in (hits, found, there))
    f1 = _ratio(2 * hits, found + there)
    f2 = _ratio(5 * hits, found + 4 * there)
    nothing_there = there <= 0
    columns = (
        _ratio(hits, found),
        _ratio(hits, there),
        np.where(nothing_there, np.nan, f1),
        np.where(nothing_there, np.nan, f2),
    )
    return np.stack(columns, axis=-1)


# ---------------------------------------------------------------- figures of a ranking


def _by_score(labels: Array, scores: Array, weights: Array) -> tuple[Array, Array]:
    """Weights of positives and of all by distinct score, highest first: two arrays (resamples, distinct scores)."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    weights = np.atleast_2d(weights)[:, order]
    positive = np.add.reduceat(weights * labels[order], starts, axis=1)
    return positive, np.add.reduceat(weights, starts, axis=1)


def average_precision(labels: Array, scores: Array, weights: Array) -> Array:
    """Labels 0 or 1 (n,), scores (n,), weights (resamples, n) → AP of each resample; equal scores enter together."""
    if len(labels) == 0:
        return np.full(len(np.atleast_2d(weights)), np.nan)
    positive, every = _by_score(labels, scores, weights)
    hits, found = positive.cumsum(axis=1), every.cumsum(axis=1)
    precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
    return _ratio((positive * precision).sum(axis=1), hits[:, -1])


def roc_auc(labels: Array, scores: Array, weights: Array) -> Array:
    """The chance that a positive row scores higher than a negative one, ties as half; shapes as above."""
    if len(labels) == 0:
        return np.full(len(np.atleast_2d(weights)), np.nan)
    positive, every = _by_score(labels, scores, weights)
    negative = every - positive
    below = negative.sum(axis=1, keepdims=True) - negative.cumsum(axis=1)
    won = (positive * (below + negative / 2)).sum(axis=1)
    return _ratio(won, positive.sum(axis=1) * negative.sum(axis=1))


# ---------------------------------------------------------------- intervals


def resamples(rows: int, count: int, seed: int) -> Iterator[Array]:
    """``count`` bootstrap resamples of so many rows as weights, in chunks (resamples, rows); the same for a seed."""
    random = np.random.default_rng(seed)
    at_once = max(1, min(count, CHUNK_CELLS // max(rows, 1)))
    for begin in range(0, count, at_once):
        size = min(at_once, count - begin)
        drawn = random.integers(0, rows, size=(size, rows)) + np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def intervals_of(figures: Callable[[Array], Array], rows: int, count: int, seed: int) -> list[Interval]:
    """The 95 % percentile interval of each figure; ``figures`` maps weights (resamples, rows) to (resamples, figures).

    Resamples in which a figure does not exist are left out of it; where it exists in none, its interval is ``None``.
    """
    if rows == 0 or count == 0:
        return [None] * figures(np.ones((1, rows))).shape[1]
    drawn = np.concatenate([figures(weights) for weights in resamples(rows, count, seed)])
    tail = (1 - CONFIDENCE) / 2
    found: list[Interval] = []
    for column in drawn.T:
        known = column[~np.isnan(column)]
        low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
        found.append(None if np.isnan(low) else (round(float(low), DIGITS), round(float(high), DIGITS)))
    return found


# ---------------------------------------------------------------- thresholds


def parse_wanted(text: str) -> Wanted:
    """``precision=0.95``, ``recall=0.9`` or ``fpr=0.05``. Raises `ValueError` that says what was expected."""
    try:
        name, value = text.split("=")
        return msgspec.convert({"figure": name.strip(), "value": float(value)}, Wanted)
    except (ValueError, msgspec.ValidationError):
        raise ValueError(f"{text!r}: expected precision=…, recall=… or fpr=… with a number from 0 to 1") from None


def suggest(wanted: Wanted, thresholds: Array, counts: Array, negatives: tuple[Array, float]) -> Suggestion:
    """The threshold that reaches what is wanted.

    ``thresholds`` (n,) from high to low, ``counts`` (n, 3) right ones, found and there at each; ``negatives``: false
    alarms at each, and of how many. For precision and fpr the one that finds most; for recall the highest one.
    """
    rates = rates_of(counts[:, 0], counts[:, 1], counts[:, 2])
    false_alarms = _ratio(negatives[0], np.full(len(thresholds), negatives[1]))
    reached = {
        "precision": rates[:, 0] >= wanted.value,
        "recall": rates[:, 1] >= wanted.value,
        "fpr": false_alarms <= wanted.value,
    }[wanted.figure]
    name = f"{wanted.figure}={wanted.value:g}"
    places = np.flatnonzero(reached)
    if not len(places):
        return Suggestion(name, None)
    # Going down, recall only grows: the last place that is precise enough finds most.
    best = places[0] if wanted.figure == "recall" else places[-1]
    return Suggestion(
        name,
        round(float(thresholds[best]), DIGITS),
        rounded(rates[best, 0]),
        rounded(rates[best, 1]),
        rounded(false_alarms[best]),
    )
