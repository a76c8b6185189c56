"""Judging a guard: places, ranks, failures, groups, several files, and the figures of a whole report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.evaluation.ranking import ranks_of
from guards.evaluation.report import Report, evaluate
from guards.evaluation.rows import read
from guards.evaluation.runs import run
from guards.evaluation.scores import Rates, Wanted
from guards.evaluation.spans import Labelled, Place, char_counts, matches, span_counts
from guards.evaluation.tables import Settings
from guards.guard import Needs, NoOptions, Result
from guards.types import Exchange, Failure, FailureCode, Hit, Message, Range, Stage, Unit

Say = Callable[[str], Result]


class Scripted:
    """A guard that says what a function says of the unit's last text."""

    name = "scripted"
    version = "1"
    options_type = NoOptions

    def __init__(self, say: Say, *stages: Stage, unit: Literal["text", "exchange"] = "text") -> None:
        self._say = say
        self.stages = frozenset(stages or ("request", "response"))
        self.unit = unit
        self.batches: list[int] = []

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        return unit.texts[-1].text != "skip"

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        self.batches.append(len(units))
        return [self._say(unit.texts[-1].text) for unit in units]


class Letters:
    """An encoder by letter counts."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def number(text: str) -> Result:
    """The score is written in the text."""
    return [Hit("a", float(text.split()[0]))]


def judge(
    folder: Path, say: Say, *files: Sequence[dict[str, Any]], guard: Scripted | None = None, **settings: Any
) -> Report:
    read_files = []
    for index, rows in enumerate(files):
        path = folder / f"{index}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        read_files.append(read(path))
    artifacts = Artifacts(Letters, None)
    return evaluate(
        guard or Scripted(say), NoOptions(), read_files, Settings(**{"resamples": 50, **settings}), artifacts
    )


def texts(*rows: tuple[str, int], **more: Any) -> list[dict[str, Any]]:
    return [{"text": text, "label": label, **more} for text, label in rows]


# ---------------------------------------------------------------- texts


def test_the_figures_of_texts(tmp_path: Path) -> None:
    report = judge(tmp_path, number, texts(("0.9", 1), ("0.8", 0), ("0.6", 1), ("0.4", 1), ("0.1", 0), ("0.2", 0)))
    assert (report.n, report.positives, report.failures) == (6, 3, 0)
    assert (report.precision, report.recall, report.f1, report.f2) == (0.6667, 0.6667, 0.6667, 0.6667)
    assert report.specificity == 0.6667
    assert report.auc == 0.7778  # 7 of 9 pairs
    assert report.ap == pytest.approx((1 + 2 / 3 + 3 / 4) / 3, abs=1e-4)
    low, high = report.intervals["recall"]
    assert 0 <= low <= 0.6667 <= high <= 1
    assert report.texts_per_s
    assert report.p50_ms


def test_a_file_with_one_class_gives_what_can_be_given(tmp_path: Path) -> None:
    bad = judge(tmp_path, number, texts(("0.9", 1), ("0.1", 1)))
    assert (bad.recall, bad.specificity) == (0.5, None)
    assert bad.precision is bad.f1 is bad.f2 is bad.ap is bad.auc is None
    assert bad.intervals["precision"] is None
    good = judge(tmp_path, number, texts(("0.9", 0), ("0.1", 0)))
    assert (good.recall, good.specificity, good.precision, good.f2, good.ap, good.auc) == (
        None,
        0.5,
        None,
        None,
        None,
        None,
    )


def test_failures_are_in_no_figure(tmp_path: Path) -> None:
    def say(text: str) -> Result:
        return Failure(FailureCode.INPUT_TOO_LARGE) if text == "large" else number(text)

    report = judge(tmp_path, say, texts(("large", 1), ("large", 0), ("0.9", 1), ("0.1", 0)))
    assert (report.n, report.failures, report.failures_by_code) == (4, 2, {"input_too_large": 2})
    assert (report.recall, report.specificity) == (1.0, 1.0)
    nothing = judge(tmp_path, say, texts(("large", 1), ("large", 0)), wanted=(Wanted("precision", 0.9),))
    assert (nothing.failures, nothing.recall, nothing.auc, nothing.suggestions[0].threshold) == (2, None, None, None)


def test_one_text_that_raises_does_not_spoil_its_batch() -> None:
    def say(text: str) -> Result:
        if text == "bad":
            raise KeyError(text)
        return number(text)

    exchanges = [Exchange(messages=[Message("user", "bad" if i == 30 else "0.9")]) for i in range(100)]
    told: list[BaseException] = []
    done = run(Scripted(say), NoOptions(), exchanges, "request", Artifacts(None, None), seed=1, on_error=told.append)
    failed = [outcome.failure for outcome in done.outcomes]
    assert failed[30] is FailureCode.ERROR
    assert failed.count(None) == 99
    assert [type(error) for error in told] == [KeyError]


def test_no_text_is_checked_twice() -> None:
    guard = Scripted(number)
    exchanges = [Exchange(messages=[Message("user", f"0.{i:03}")]) for i in range(500)]
    progress: list[int] = []
    done = run(guard, NoOptions(), exchanges, "request", Artifacts(None, None), progress=progress.append)
    assert [outcome.score() for outcome in done.outcomes] == [i / 1000 for i in range(500)]
    assert sum(guard.batches) == sum(progress) == 500
    assert len(done.singles_ms) == guard.batches.count(1) == 100
    assert max(guard.batches) == 64


def test_nothing_to_look_at_scores_zero_and_is_told(tmp_path: Path) -> None:
    report = judge(tmp_path, number, texts(("skip", 1), ("0.9", 1), ("", 0)))
    assert (report.skipped, report.failures, report.recall, report.specificity) == (2, 0, 0.5, 1.0)


def test_by_language_group_and_kind(tmp_path: Path) -> None:
    def say(text: str) -> Result:
        low, high = map(float, text.split())
        return [Hit("low", low), Hit("high", high)]

    rows = [
        *texts(("0.1 0.9", 1), ("0.1 0.1", 0), language="de", kind="insult"),
        *texts(("0.9 0.1", 1), ("0.2 0.2", 1), language="en"),
    ]
    report = judge(tmp_path, say, rows)
    assert {name: item.recall for name, item in report.by_language.items()} == {"de": 1.0, "en": 0.5}
    assert {name: item.n for name, item in report.by_label.items()} == {"insult": 2}
    assert {name: item.recall for name, item in report.by_kind.items()} == {"high": 0.3333, "low": 0.3333}
    assert judge(tmp_path, say, rows, kinds=frozenset({"high"})).recall == 0.3333


def test_several_files_are_told_one_by_one_and_together(tmp_path: Path) -> None:
    report = judge(tmp_path, number, texts(("0.9", 1), ("0.8", 0)), texts(("0.1", 1), ("0.1", 0), ("0.2", 0)))
    assert [(item.n, item.recall) for item in report.files.values()] == [(2, 1.0), (3, 0.0)]
    assert (report.n, report.recall, report.specificity) == (5, 0.5, 0.6667)
    assert report.kinds_found == ("a",)
    with pytest.raises(ConfigError, match="rows of different forms"):
        judge(tmp_path, number, texts(("0.9", 1)), [{"response": "0.9", "label": 1}])


def test_the_same_seed_gives_the_same_intervals(tmp_path: Path) -> None:
    rows = texts(*[(f"{score / 20}", int(score % 3 == 0)) for score in range(20)])
    one, other = (judge(tmp_path, number, rows, seed=3, resamples=200) for _ in range(2))
    assert one.intervals == other.intervals
    assert one.intervals != judge(tmp_path, number, rows, seed=4, resamples=200).intervals


def test_thresholds_that_are_suggested(tmp_path: Path) -> None:
    rows = texts(("0.9", 1), ("0.8", 1), ("0.7", 0), ("0.6", 1), ("0.1", 0))
    report = judge(tmp_path, number, rows, wanted=(Wanted("precision", 1.0), Wanted("fpr", 0.5)))
    assert [(item.threshold, item.recall) for item in report.suggestions] == [(0.8, 0.6667), (0.6, 1.0)]


@pytest.mark.parametrize(("stages", "stage"), [(("request", "response"), "request"), (("response",), "response")])
def test_the_stage_at_which_a_text_is_looked_at(tmp_path: Path, stages: tuple[Stage, ...], stage: Stage) -> None:
    seen: list[Stage] = []

    class Watching(Scripted):
        def applies(self, unit: Unit, options: NoOptions) -> bool:
            seen.append(unit.stage)
            return True

    judge(tmp_path, number, texts(("0.9", 1)), guard=Watching(number, *stages))
    assert set(seen) == {stage}


def test_a_stage_that_is_not_the_guards(tmp_path: Path) -> None:
    guard = Scripted(number, "request")
    with pytest.raises(ConfigError, match="cannot look at the stage 'response'"):
        judge(tmp_path, number, [{"response": "0.9", "label": 1}], guard=guard)


# ---------------------------------------------------------------- places


PLACES = st.lists(
    st.builds(lambda start, length: Place(start, start + length), st.integers(0, 30), st.integers(1, 8)), max_size=6
)


def test_a_match_is_an_overlap_of_half_and_one_to_one() -> None:
    wanted = [Place(0, 10), Place(20, 30)]
    assert matches(wanted, [Place(0, 5), Place(24, 34)]) == [(0, 0)]  # 5 of 10, and 6 of 14
    assert matches(wanted, [Place(0, 9), Place(0, 10)]) == [(0, 1)]
    assert matches(wanted, [Place(0, 30)]) == []
    assert matches(wanted, [Place(1, 10), Place(20, 30)], exact=True) == [(1, 1)]


@given(PLACES, PLACES)
def test_no_place_matches_twice_and_every_match_overlaps(wanted: list[Place], found: list[Place]) -> None:
    pairs = matches(wanted, found)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    for i, j in pairs:
        shared = set(range(wanted[i].start, wanted[i].end)) & set(range(found[j].start, found[j].end))
        union = set(range(wanted[i].start, wanted[i].end)) | set(range(found[j].start, found[j].end))
        assert len(shared) / len(union) >= 0.5
    left_wanted = [place for i, place in enumerate(wanted) if i not in {pair[0] for pair in pairs}]
    left_found = [place for j, place in enumerate(found) if j not in {pair[1] for pair in pairs}]
    assert not set(left_wanted) & set(left_found), "two equal places are left over"


def test_labels_that_were_not_asked_for_are_neither_wanted_nor_wrong() -> None:
    labelled = Labelled(40, (Place(0, 10, "A"),), (Place(20, 30, "B"),))
    found = [Place(0, 10), Place(21, 29), Place(35, 40)]
    assert char_counts(labelled, found) == (10, 15, 10)
    assert span_counts(labelled, found) == (1, 2, 1)


def test_the_figures_of_places(tmp_path: Path) -> None:
    def say(text: str) -> Result:
        if text.startswith("no"):
            return []
        return [
            Hit("PERSON", 0.9, (Range(0, 4),)),
            Hit("PERSON", 0.6, (Range(10, 14),)),
            Hit("CITY", 0.2, (Range(5, 9),)),
        ]

    rows = [
        {
            "text": "Anna Bonn Ulm. Leon",
            "spans": [
                {"start": 0, "end": 4, "label": "PERSON"},
                {"start": 10, "end": 13, "label": "CITY"},
                {"start": 15, "end": 19, "label": "PERSON"},
            ],
        },
        {"text": "nothing here", "spans": []},
    ]
    report = judge(tmp_path, say, rows, wanted=(Wanted("precision", 1.0),))
    assert (report.n, report.positives, report.recall, report.specificity) == (2, 1, 1.0, 1.0)
    assert report.char == Rates(0.875, 0.6364, 0.7368, 0.6731)  # 7 of 8 found, 7 of 11 there
    assert report.span == Rates(1.0, 0.6667, 0.8, 0.7143)  # the city overlaps by 3 of 4
    assert report.span_exact == Rates(0.5, 0.3333, 0.4, 0.3571)
    assert report.by_label["CITY"].span == Rates(recall=1.0)
    assert report.by_label["CITY"].same is None, "nothing was taken for a city"
    assert report.by_label["PERSON"].same == Rates(0.5, 0.5, 0.5, 0.5)
    assert report.by_kind["PERSON"].char == Rates(precision=0.875)
    assert report.suggestions[0].threshold == 0.9
    assert report.intervals["char"]["precision"][1] <= 1
    one = judge(tmp_path, say, rows, labels=frozenset({"PERSON"}))
    assert one.char == Rates(0.8, 0.5, 0.6154, 0.5405)  # of the city's characters only the dot after it counts


def test_a_label_that_no_place_has_is_refused(tmp_path: Path) -> None:
    rows = [{"text": "Anna", "spans": [{"start": 0, "end": 4, "label": "PERSON"}]}]
    with pytest.raises(ConfigError, match="no place has the label 'PERSN'; did you mean 'PERSON'"):
        judge(tmp_path, number, rows, labels=frozenset({"PERSN"}))


def test_what_lies_in_a_place_that_was_not_asked_for_is_no_false_alarm(tmp_path: Path) -> None:
    def say(text: str) -> Result:
        return [Hit("CITY", 0.9, (Range(0, 4),))]

    city = {"text": "Bonn", "spans": [{"start": 0, "end": 4, "label": "CITY"}]}
    person = {"text": "Anna", "spans": [{"start": 0, "end": 4, "label": "PERSON"}]}
    report = judge(tmp_path, say, [city, person], labels=frozenset({"PERSON"}))
    assert (report.positives, report.recall, report.specificity) == (1, 1.0, 1.0)


def test_texts_that_all_hold_places_give_the_recall_of_texts(tmp_path: Path) -> None:
    rows = [{"text": "Anna", "spans": [{"start": 0, "end": 4}]}]
    report = judge(tmp_path, lambda text: [Hit("X", 0.9, (Range(0, 4),))], rows)
    assert (report.recall, report.precision, report.auc, report.char.precision) == (1.0, None, None, 1.0)


# ---------------------------------------------------------------- ranks


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5).filter(
        lambda items: any(right for _, right in items)
    )
)
def test_ranks_are_the_mean_over_all_orders_of_the_tied(items: list[tuple[int, bool]]) -> None:
    scores, right = (np.array(column) for column in zip(*items, strict=True))
    every = []
    for order in itertools.permutations(range(len(items))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        places = [place for place, index in enumerate(order, start=1) if right[index]]
        precision = [count / place for count, place in enumerate(places, start=1)]
        every.append((1 / places[0], sum(precision) / len(places), float(places[0] == 1)))
    assert msgspec.structs.astuple(ranks_of(scores, right)) == pytest.approx(np.mean(every, axis=0))


def test_the_figures_of_candidates(tmp_path: Path) -> None:
    rows = [
        {"question": "abc", "candidates": ["0.1 abc", "0.9 xyz", "0.5 ab"], "right": 0},
        {"question": "xyz", "candidates": ["0.2 abc", "0.4 xyz"], "right": 1, "language": "xx"},
    ]
    report = judge(tmp_path, number, rows, guard=Scripted(number, "response", unit="exchange"))
    assert (report.n, report.positives) == (2, 3)
    assert (report.mrr, report.map, report.recall_at_1) == (0.75, 0.75, 0.5)
    assert report.ranking["candidates"]["cosine"].mrr == 1.0
    assert report.ranking["candidates"]["word_overlap"].recall_at_1 == 1.0
    assert report.ranking["candidates"]["guard"].mrr == 0.75
    assert report.by_language["xx"].mrr == 0.5
    assert (report.recall, report.specificity) == (0.6667, 1.0)
    assert report.intervals["mrr"] is not None


def test_a_question_with_a_candidate_that_could_not_be_seen_is_a_failure(tmp_path: Path) -> None:
    def say(text: str) -> Result:
        return Failure(FailureCode.TIMEOUT) if text == "slow" else number(text)

    rows = [
        {"question": "a", "candidates": ["0.1", "slow"], "right": 0},
        {"question": "b", "candidates": ["0.1", "0.2"], "right": 0},
    ]
    report = judge(tmp_path, say, rows, guard=Scripted(say, "response", unit="exchange"))
    assert (report.failures, report.failures_by_code, report.mrr) == (1, {"timeout": 1}, 1.0)
