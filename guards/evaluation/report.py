"""How good a guard is on labelled files: its figures, with intervals, by label, kind and language, and its speed.

Figures are of the rows that the guard could look at; those that it could not are failures, counted apart and in no
figure. A row is one draw of the bootstrap: a text, an exchange, or a question with all its candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.evaluation.ranking import Ranks
from guards.evaluation.rows import LabelledFile, RankingRow, SpanRow
from guards.evaluation.runs import Run, run
from guards.evaluation.scores import Rates, Suggestion, Wanted, rates_of, rounded, suggest
from guards.evaluation.spans import Labelled, Place, char_counts, matches
from guards.evaluation.tables import (
    Figures,
    Judged,
    Settings,
    Table,
    counts_of,
    places_of,
    ranks_in,
    risks_of,
    table_of,
)
from guards.guard import Guard
from guards.strict import nearest
from guards.types import Document, Exchange, Message
from guards.words import content_stems, words

__all__ = ["Figures", "LabelFigures", "Report", "Settings", "evaluate"]

MAX_SWEEP = 100
"""Thresholds tried for a suggestion by character; each means to compare all places anew."""


_WORDS: Final = "Please ask John Smith in Berlin for the invoice of 3 May. It is paid."
_WARM: Final = Exchange(
    messages=[Message("user", _WORDS)],
    response=[Message("assistant", _WORDS)],
    documents=[Document(_WORDS)],
    reference=_WORDS,
)
"""Checked once and forgotten, so that the first row is not slower than the hundredth."""


class LabelFigures(msgspec.Struct, frozen=True):
    """Places of one label (recall, whatever they were taken for) or of one kind of finding (precision, whatever they
    were). ``same``: overlaps that have the right label too; ``None`` where label and kind never share the name."""

    n: int
    char: Rates
    span: Rates
    same: Rates | None = None


class Report(Figures, frozen=True, kw_only=True):
    """The figures of all files together; ``files``: of each, if there are several.

    ``n`` includes the ``failures``. ``skipped``: rows in which the guard had nothing to look at: they score 0.
    ``intervals``: 95 %, nested as the figures are. ``ranking``: pool → scorer (the guard, word overlap, cosine) →
    ranks; the headline figures are the guard's in the first pool. ``kinds``: those asked for; ``kinds_found``: of all
    findings, whatever their score.
    """

    guard: str
    version: str
    threshold: float
    kinds: tuple[str, ...]
    kinds_found: tuple[str, ...]
    failures: int
    failures_by_code: Mapping[str, int]
    skipped: int
    by_label: Mapping[str, Figures | LabelFigures]
    by_kind: Mapping[str, Figures | LabelFigures]
    by_language: Mapping[str, Figures]
    ranking: Mapping[str, Mapping[str, Ranks]]
    intervals: Mapping[str, Any]
    texts_per_s: float | None
    p50_ms: float | None
    p95_ms: float | None
    suggestions: tuple[Suggestion, ...]
    files: Mapping[str, Report]


def evaluate(
    guard: Guard,
    options: Any,
    files: Sequence[LabelledFile],
    settings: Settings,
    artifacts: Artifacts,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_error: Callable[[BaseException], None] = lambda error: None,
) -> Report:
    """Put all rows of the files to the guard and say how good it was; blocks. Raises `ConfigError` for files whose rows
    are of different forms, or a stage at which the guard cannot look. ``progress``: told how many exchanges are done,
    and of how many."""
    forms = {file.form for file in files}
    if len(forms) > 1:
        raise ConfigError(f"the files hold rows of different forms ({', '.join(sorted(forms))}): judge them one by one")
    takes_requests = "request" in guard.stages and forms <= {"text", "spans"}
    stage = settings.stage or ("request" if takes_requests else "response")
    _require_labels(files, settings.labels)
    if stage not in guard.stages:
        raise ConfigError(f"the guard {guard.name} cannot look at the stage {stage!r}")
    run(guard, options, [_WARM], stage, artifacts)
    exchanges = [[row.exchanges(stage, settings.role) for row in file.rows] for file in files]
    total = sum(len(group) for groups in exchanges for group in groups)
    so_far = 0

    def advance(more: int) -> None:
        nonlocal so_far
        so_far += more
        progress(so_far, total)

    parts: list[_Part] = []
    for file, groups in zip(files, exchanges, strict=True):
        done = run(
            guard,
            options,
            [exchange for group in groups for exchange in group],
            stage,
            artifacts,
            seed=settings.seed,
            progress=advance,
            on_error=on_error,
        )
        outcomes = iter(done.outcomes)
        judged = [Judged(row, [next(outcomes) for _ in group]) for row, group in zip(file.rows, groups, strict=True)]
        parts.append(_Part(judged, done))
    reports = {
        file.path: _report(guard, part, file.form, settings, artifacts) for file, part in zip(files, parts, strict=True)
    }
    if len(parts) == 1:
        return next(iter(reports.values()))
    everything = _Part([item for part in parts for item in part.judged], sum((p.run for p in parts[1:]), parts[0].run))
    return msgspec.structs.replace(_report(guard, everything, files[0].form, settings, artifacts), files=reports)


def _require_labels(files: Sequence[LabelledFile], labels: frozenset[str]) -> None:
    """A label that no place has is a slip of the pen: its recall would be nothing at all."""
    known = {span.label for file in files for row in file.rows if isinstance(row, SpanRow) for span in row.spans}
    for label in sorted(labels - known):
        raise ConfigError(f"no place has the label {label!r}{nearest(label, known)}")


class _Part(msgspec.Struct, frozen=True):
    judged: list[Judged]
    run: Run


# ---------------------------------------------------------------- the report


def _report(guard: Guard, part: _Part, form: str, settings: Settings, artifacts: Artifacts) -> Report:
    failed = [item for item in part.judged if any(outcome.failure for outcome in item.outcomes)]
    judged = [item for item in part.judged if not any(outcome.failure for outcome in item.outcomes)]
    codes = Counter(str(next(o.failure for o in item.outcomes if o.failure)) for item in failed)
    table = table_of(judged, form, settings)
    figures = table.summary()
    speed = part.run.speed
    by_language = _by(judged, lambda row: row.language, form, settings)
    by_kind: Mapping[str, Figures | LabelFigures]
    by_label: Mapping[str, Figures | LabelFigures]
    if form == "spans":
        by_label, by_kind = _by_place(judged, settings)
    else:
        by_label = _by(judged, lambda row: getattr(row, "group", ""), form, settings)
        by_kind = _by_kind(judged, form, settings)
    return Report(
        **{
            **{name: getattr(figures, name) for name in figures.__struct_fields__},
            "n": len(part.judged),
        },
        guard=guard.name,
        version=guard.version,
        threshold=settings.threshold,
        kinds=tuple(sorted(settings.kinds)),
        kinds_found=_kinds(judged),
        failures=len(failed),
        failures_by_code=dict(codes),
        skipped=sum(not all(outcome.looked for outcome in item.outcomes) for item in judged),
        by_label=by_label,
        by_kind=by_kind,
        by_language=by_language,
        ranking=_ranking(judged, settings, artifacts) if form == "ranking" else {},
        intervals=table.intervals(figures, settings),
        texts_per_s=speed.texts_per_s,
        p50_ms=speed.p50_ms,
        p95_ms=speed.p95_ms,
        suggestions=tuple(_suggestion(wanted, judged, table, form, settings) for wanted in settings.wanted),
        files={},
    )


def _by(judged: Sequence[Judged], key: Callable[[Any], str], form: str, settings: Settings) -> dict[str, Figures]:
    """Figures by a key of the rows; rows without one are in none."""
    groups: dict[str, list[Judged]] = {}
    for item in judged:
        if name := key(item.row):
            groups.setdefault(name, []).append(item)
    return {name: table_of(groups[name], form, settings).summary() for name in sorted(groups)}


def _kinds(judged: Sequence[Judged]) -> tuple[str, ...]:
    return tuple(sorted({hit.kind for item in judged for outcome in item.outcomes for hit in outcome.hits}))


def _by_kind(judged: Sequence[Judged], form: str, settings: Settings) -> dict[str, Figures]:
    """Each kind of finding as if it were the guard's only one."""
    chosen = [kind for kind in _kinds(judged) if not settings.kinds or kind in settings.kinds]
    if len(chosen) < 2:
        return {}  # it would repeat the figures of the guard
    return {kind: table_of(judged, form, settings, frozenset({kind})).summary() for kind in chosen}


def _by_place(judged: Sequence[Judged], settings: Settings) -> tuple[dict[str, LabelFigures], dict[str, LabelFigures]]:
    """By label of the wanted places, and by kind of the found ones."""
    spans: dict[str, Counter[str]] = {}  # label → wanted, matched, chars, covered
    found: dict[str, Counter[str]] = {}
    same: Counter[str] = Counter()
    for item in judged:
        labelled: Labelled = item.row.labelled(settings.labels)
        places = labelled.judged(places_of(item, settings.kinds, settings.threshold))
        matched = matches(labelled.wanted, places)
        for own, others, table in ((labelled.wanted, places, spans), (places, labelled.wanted, found)):
            for place in own:
                counted = table.setdefault(place.label, Counter())
                counted["n"] += 1
                counted["chars"] += place.length
                counted["covered"] += _covered(place, others)
        for wanted_index, found_index in matched:
            spans[labelled.wanted[wanted_index].label]["matched"] += 1
            found[places[found_index].label]["matched"] += 1
        for label in {place.label for place in labelled.wanted} & {place.label for place in places}:
            same[label] += len(
                matches([p for p in labelled.wanted if p.label == label], [p for p in places if p.label == label])
            )
    by_label = {
        label: LabelFigures(
            counted["n"],
            Rates(recall=rounded(counted["covered"] / counted["chars"])),
            Rates(recall=rounded(counted["matched"] / counted["n"])),
            _rates(same[label], found[label]["n"], counted["n"]) if label in found else None,
        )
        for label, counted in sorted(spans.items())
    }
    by_kind = {
        kind: LabelFigures(
            counted["n"],
            Rates(precision=rounded(counted["covered"] / counted["chars"])),
            Rates(precision=rounded(counted["matched"] / counted["n"])),
        )
        for kind, counted in sorted(found.items())
    }
    return by_label, by_kind


def _covered(place: Place, others: Sequence[Place]) -> int:
    """Characters of the place that the others cover, each once."""
    covered, reached = 0, place.start
    for other in sorted(others):
        begin, end = max(other.start, reached), min(other.end, place.end)
        if end > begin:
            covered += end - begin
            reached = end
    return covered


def _rates(hits: int, found: int, there: int) -> Rates:
    return Rates(*(rounded(value) for value in rates_of(np.array(hits), np.array(found), np.array(there))))


def _ranking(judged: Sequence[Judged], settings: Settings, artifacts: Artifacts) -> dict[str, dict[str, Ranks]]:
    """The guard beside two baselines, in every pool: the share of the question's content words, and the bare cosine."""
    texts = [text for item in judged for text in (item.row.question, *item.row.candidates)]
    artifacts.prepare(texts, ())
    ranks: dict[str, dict[str, list[Ranks]]] = {}
    for item in judged:
        row: RankingRow = item.row
        asked = artifacts.embedding(row.question)
        stems = frozenset(content_stems(words(row.question)))
        scorers: dict[str, Mapping[str, float]] = {
            "guard": {text: -risk for text, risk in risks_of(item, settings.kinds).items()},
            "word_overlap": {text: _overlap(stems, text) for text in row.candidates},
            "cosine": {text: float(asked @ artifacts.embedding(text)) for text in row.candidates},
        }
        for name, pool in row.pools.items():
            for scorer, scores in scorers.items():
                ranks.setdefault(name, {}).setdefault(scorer, []).append(ranks_in(pool, scores))
    return {name: {scorer: _mean(found) for scorer, found in scorers.items()} for name, scorers in ranks.items()}


def _overlap(stems: frozenset[str], text: str) -> float:
    return len(stems & set(content_stems(words(text)))) / len(stems) if stems else 0.0


def _mean(ranks: Sequence[Ranks]) -> Ranks:
    means = np.array([msgspec.structs.astuple(rank) for rank in ranks]).mean(axis=0)
    return Ranks(*(round(float(value), 4) for value in means))


def _suggestion(wanted: Wanted, judged: Sequence[Judged], table: Table, form: str, settings: Settings) -> Suggestion:
    """For places, precision and recall are by character; false alarms are texts without any place."""
    negative = table.labels == 0
    if form == "spans":
        scores = {place.score for item in judged for place in places_of(item, settings.kinds, 0.0)}
        thresholds = np.array(sorted(scores, reverse=True))
        if len(thresholds) > MAX_SWEEP:
            thresholds = thresholds[np.linspace(0, len(thresholds) - 1, MAX_SWEEP).astype(int)]
        labelled = [item.row.labelled(settings.labels) for item in judged]
        counts = np.array(
            [
                counts_of(
                    char_counts(one, places_of(item, settings.kinds, threshold))
                    for one, item in zip(labelled, judged, strict=True)
                ).sum(axis=0)
                for threshold in thresholds
            ]
        ).reshape(-1, 3)
    else:
        thresholds = np.unique(table.scores)[::-1]
        positive_scores = np.sort(table.scores[~negative])
        every = np.sort(table.scores)
        found = len(every) - np.searchsorted(every, thresholds)
        hits = len(positive_scores) - np.searchsorted(positive_scores, thresholds)
        counts = np.stack([hits, found, np.full(len(thresholds), len(positive_scores))], axis=1)
    clean = np.sort(table.scores[negative])
    false_alarms = len(clean) - np.searchsorted(clean, thresholds)
    return suggest(wanted, thresholds, counts, (false_alarms, float(len(clean))))
