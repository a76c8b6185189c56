"""Judged rows as arrays, and the figures of such a table with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from guards.evaluation.ranking import Ranks, ranks_of
from guards.evaluation.rows import Pool, Role
from guards.evaluation.runs import Outcome
from guards.evaluation.scores import Array, Rates, Wanted, average_precision, intervals_of, rates_of, roc_auc, rounded
from guards.evaluation.spans import Labelled, Place, char_counts, span_counts
from guards.types import Stage

__all__ = ["Figures", "Judged", "Settings", "Table", "counts_of", "places_of", "ranks_in", "risks_of", "table_of"]


class Settings(msgspec.Struct, frozen=True):
    """``threshold``: a score from it on is a finding. ``kinds``: of findings, ``labels``: of places; default: all.

    ``stage``: default: the request, for a guard that looks at requests. ``role``: of texts, where a row says none.
    """

    threshold: float = 0.5
    kinds: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    stage: Stage | None = None
    role: Role | None = None
    resamples: int = 1_000
    seed: int = 0
    wanted: tuple[Wanted, ...] = ()


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """``None``: cannot be said (no such rows), or not of this form of rows.

    ``n``: rows; ``positives``: those (of ranking rows, pairs) that should be found. ``char`` and ``span``: of places;
    ``span`` wants an overlap of half, ``span_exact`` the same start and end.
    """

    n: int
    positives: int
    precision: float | None = None
    recall: float | None = None
    specificity: float | None = None
    f1: float | None = None
    f2: float | None = None
    ap: float | None = None
    auc: float | None = None
    char: Rates | None = None
    span: Rates | None = None
    span_exact: Rates | None = None
    mrr: float | None = None
    map: float | None = None
    recall_at_1: float | None = None


class Judged(msgspec.Struct, frozen=True):
    """A row and what the guard said of its exchanges."""

    row: Any
    outcomes: list[Outcome]


class Table(msgspec.Struct, frozen=True):
    """Rows as arrays. ``item_row``: which row a labelled score belongs to (a ranking row has two or more).

    ``places``: by name (n, 3): right ones, found, there. ``ranks``: (n, 3) as in `Ranks`.
    """

    rows: int
    labels: Array
    scores: Array
    item_row: Array
    threshold: float
    places: Mapping[str, Array] = {}
    ranks: Array | None = None

    @property
    def names(self) -> list[str]:
        names = ["precision", "recall", "f1", "f2", "specificity", "ap", "auc"]
        names += [f"{place}.{rate}" for place in self.places for rate in ("precision", "recall", "f1", "f2")]
        return names + (["mrr", "map", "recall_at_1"] if self.ranks is not None else [])

    def figures(self, weights: Array) -> Array:
        """Weights (resamples, rows) → figures (resamples, names)."""
        items = weights[:, self.item_row]
        flagged = (self.scores >= self.threshold).astype(np.float64)
        there = items @ self.labels
        false_alarms = items @ (flagged * (1 - self.labels))
        negatives = items @ (1 - self.labels)
        with np.errstate(divide="ignore", invalid="ignore"):
            specificity = 1 - false_alarms / negatives
        columns = [
            rates_of(items @ (flagged * self.labels), items @ flagged, there).T,
            np.where(negatives > 0, specificity, np.nan)[None],
            average_precision(self.labels, self.scores, items)[None],
            roc_auc(self.labels, self.scores, items)[None],
        ]
        columns += [rates_of(*(weights @ counts).T).T for counts in self.places.values()]
        if self.ranks is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                columns.append((weights @ self.ranks / weights.sum(axis=1, keepdims=True)).T)
        return np.concatenate(columns).T

    def summary(self) -> Figures:
        named = dict(zip(self.names, self.figures(np.ones((1, self.rows)))[0], strict=True))
        # With one class there is nothing to rank, nor a precision that would say more than the recall.
        if self.labels.all() or not self.labels.any():
            named |= dict.fromkeys(("precision", "f1", "f2", "ap", "auc"), np.nan)
        values = _nested({name: rounded(value) for name, value in named.items()})
        return msgspec.convert({"n": self.rows, "positives": int(self.labels.sum()), **values}, Figures)

    def intervals(self, figures: Figures, settings: Settings) -> dict[str, Any]:
        """The interval of each figure that exists."""
        found = intervals_of(self.figures, self.rows, settings.resamples, settings.seed)
        known = msgspec.to_builtins(figures)
        return _nested(
            {
                name: None if _at(known, name) is None else interval
                for name, interval in zip(self.names, found, strict=True)
            }
        )


def _nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """``{"char.recall": …}`` → ``{"char": {"recall": …}}``."""
    nested: dict[str, Any] = {}
    for name, value in named.items():
        outer, _, inner = name.rpartition(".")
        (nested.setdefault(outer, {}) if outer else nested)[inner] = value
    return nested


def _at(figures: Mapping[str, Any], name: str) -> Any:
    outer, _, inner = name.rpartition(".")
    return (figures[outer] if outer else figures)[inner]


def table_of(judged: Sequence[Judged], form: str, settings: Settings, kinds: frozenset[str] | None = None) -> Table:
    kinds = settings.kinds if kinds is None else kinds
    if form == "ranking":
        return _ranking_table(judged, settings, kinds)
    places = {}
    if form == "spans":
        labelled = [item.row.labelled(settings.labels) for item in judged]
        labels = [bool(item.wanted) for item in labelled]
        scores = [_judged_score(*pair, kinds) for pair in zip(labelled, judged, strict=True)]
        found = [places_of(item, kinds, settings.threshold) for item in judged]
        pairs = list(zip(labelled, found, strict=True))
        places = {
            "char": counts_of(char_counts(*pair) for pair in pairs),
            "span": counts_of(span_counts(*pair) for pair in pairs),
            "span_exact": counts_of(span_counts(*pair, exact=True) for pair in pairs),
        }
    else:
        labels = [bool(item.row.label) for item in judged]
        scores = [item.outcomes[0].score(kinds) for item in judged]
    return Table(
        rows=len(judged),
        labels=np.array(labels, dtype=np.float64),
        scores=np.array(scores, dtype=np.float64),
        item_row=np.arange(len(judged)),
        threshold=settings.threshold,
        places=places,
    )


def _judged_score(labelled: Labelled, item: Judged, kinds: frozenset[str]) -> float:
    """The highest finding that does not lie in an ignored place."""
    if not labelled.ignored:
        return item.outcomes[0].score(kinds)
    return max((place.score for place in labelled.judged(places_of(item, kinds, 0.0))), default=0.0)


def counts_of(counts: Iterable[tuple[int, int, int]]) -> Array:
    return np.array(list(counts), dtype=np.float64).reshape(-1, 3)


def places_of(item: Judged, kinds: frozenset[str], threshold: float) -> list[Place]:
    """What the guard found from the threshold on. A text is the only one of its exchange."""
    return [
        Place(part.start, part.end, hit.kind, hit.score)
        for hit in item.outcomes[0].hits
        if hit.score >= threshold and (not kinds or hit.kind in kinds)
        for part in hit.ranges
        if part.end > part.start
    ]


def _ranking_table(judged: Sequence[Judged], settings: Settings, kinds: frozenset[str]) -> Table:
    labels, scores, item_row, ranks = [], [], [], []
    for number, item in enumerate(judged):
        risks = risks_of(item, kinds)
        for text, label in item.row.pairs:
            labels.append(float(label))
            scores.append(risks[text])
            item_row.append(number)
        ranks.append(ranks_in(next(iter(item.row.pools.values())), risks, sign=-1))
    return Table(
        rows=len(judged),
        labels=np.array(labels),
        scores=np.array(scores),
        item_row=np.array(item_row, dtype=np.int64),
        threshold=settings.threshold,
        ranks=np.array([msgspec.structs.astuple(rank) for rank in ranks]).reshape(-1, 3),
    )


def risks_of(item: Judged, kinds: frozenset[str]) -> dict[str, float]:
    return {text: outcome.score(kinds) for text, outcome in zip(item.row.candidates, item.outcomes, strict=True)}


def ranks_in(pool: Pool, scores: Mapping[str, float], *, sign: int = 1) -> Ranks:
    right = np.array([number in pool.right for number in range(len(pool.candidates))])
    return ranks_of(sign * np.array([scores[text] for text in pool.candidates]), right)
