"""Figures of scores against labels: against scikit-learn, and where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, fbeta_score, precision_score, recall_score, roc_auc_score

from guards.evaluation.scores import (
    Wanted,
    average_precision,
    intervals_of,
    parse_wanted,
    rates_of,
    resamples,
    roc_auc,
    suggest,
)

# Few distinct scores, so that ties are the rule.
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=40)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = zip(*rows, strict=True)
    return np.array(labels, dtype=float), np.array(scores) / 6


@given(ROWS)
def test_as_scikit_learn_says(rows: list[tuple[int, int]]) -> None:
    labels, scores = arrays(rows)
    assume(0 < labels.sum() < len(labels))
    one = np.ones((1, len(rows)))
    assert average_precision(labels, scores, one)[0] == pytest.approx(average_precision_score(labels, scores))
    assert roc_auc(labels, scores, one)[0] == pytest.approx(roc_auc_score(labels, scores))
    flagged = scores >= 0.5
    rates = rates_of(np.array((flagged * labels).sum()), np.array(flagged.sum()), np.array(labels.sum()))
    assert rates[1] == pytest.approx(recall_score(labels, flagged))
    assert rates[2] == pytest.approx(fbeta_score(labels, flagged, beta=1, zero_division=0))
    assert rates[3] == pytest.approx(fbeta_score(labels, flagged, beta=2, zero_division=0))
    if flagged.any():
        assert rates[0] == pytest.approx(precision_score(labels, flagged))
    else:
        assert np.isnan(rates[0])


@given(ROWS, st.data())
def test_a_weight_is_a_row_so_often(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    labels, scores = arrays(rows)
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    again = np.repeat(np.arange(len(rows)), counts)
    assume(0 < labels[again].sum() < len(again))
    weights = np.array([counts], dtype=float)
    expected = average_precision_score(labels[again], scores[again]), roc_auc_score(labels[again], scores[again])
    assert average_precision(labels, scores, weights)[0] == pytest.approx(expected[0])
    assert roc_auc(labels, scores, weights)[0] == pytest.approx(expected[1])


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_with_one_class_there_is_no_auc(label: float) -> None:
    assert np.isnan(roc_auc(np.full(3, label), np.array([0.1, 0.2, 0.3]), np.ones((1, 3)))[0])


def test_nothing_found_is_no_precision_and_f_of_zero() -> None:
    assert rates_of(np.array(0), np.array(0), np.array(5))[1:].tolist() == [0, 0, 0]
    assert np.isnan(rates_of(np.array(0), np.array(3), np.array(0))[1:]).all()


# ---------------------------------------------------------------- intervals


@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 5))
def test_every_resample_has_as_many_rows(rows: int, count: int, seed: int) -> None:
    drawn = np.concatenate(list(resamples(rows, count, seed)))
    assert drawn.shape == (count, rows)
    assert (drawn.sum(axis=1) == rows).all()
    assert (drawn == np.concatenate(list(resamples(rows, count, seed)))).all()


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    hits = np.repeat([1.0, 0.0], [300, 700])
    ((low, high),) = intervals_of(lambda weights: (weights @ hits / 1000)[:, None], 1000, 4000, seed=1)
    # 0.3 ± 1.96 · sqrt(0.3 · 0.7 / 1000)
    assert low == pytest.approx(0.2716, abs=0.004)
    assert high == pytest.approx(0.3284, abs=0.004)


def test_a_figure_that_never_exists_has_no_interval() -> None:
    figures = lambda weights: np.full((len(weights), 2), [np.nan, 0.5])  # noqa: E731
    assert intervals_of(figures, 10, 100, seed=0) == [None, (0.5, 0.5)]
    assert intervals_of(figures, 10, 0, seed=0) == [None, None]
    assert intervals_of(figures, 0, 100, seed=0) == [None, None]


# ---------------------------------------------------------------- thresholds

LABELS = np.array([1, 1, 0, 1, 0, 0, 1, 0])
THRESHOLDS = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])  # also the scores


def suggested(text: str) -> tuple[float | None, float | None, float | None, float | None]:
    hits, found = LABELS.cumsum(), np.arange(1, 9)
    counts = np.stack([hits, found, np.full(8, 4)], axis=1)
    got = suggest(parse_wanted(text), THRESHOLDS, counts, (found - hits, 4.0))
    return got.threshold, got.precision, got.recall, got.fpr


def test_of_the_thresholds_that_are_precise_enough_the_one_that_finds_most() -> None:
    assert suggested("precision=1") == (0.8, 1.0, 0.5, 0.0)
    assert suggested("precision=0.75") == (0.6, 0.75, 0.75, 0.25)  # at 0.7 it is below, and above again at 0.6


def test_a_false_positive_rate_and_a_recall() -> None:
    assert suggested("fpr=0.25") == (0.6, 0.75, 0.75, 0.25)
    assert suggested("recall=0.5") == (0.8, 1.0, 0.5, 0.0)


def test_what_no_threshold_reaches() -> None:
    counts = np.array([[0, 1, 1], [1, 2, 1]])
    got = suggest(Wanted("precision", 0.9), np.array([0.5, 0.4]), counts, (np.array([1, 1]), 1.0))
    assert (got.wanted, got.threshold, got.precision) == ("precision=0.9", None, None)
    no_negatives = suggest(Wanted("fpr", 0.1), np.array([0.5]), counts[:1], (np.array([0]), 0.0))
    assert no_negatives.threshold is None


@pytest.mark.parametrize("text", ["precision", "precision=x", "f1=0.5", "precision=0.5=1", ""])
def test_what_cannot_be_wanted(text: str) -> None:
    with pytest.raises(ValueError, match="expected precision=…, recall=… or fpr=…"):
        parse_wanted(text)
