"""The sketch: within 1 %, exact under merging and taking away."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.monitor.sketch import RELATIVE_ACCURACY, index_of, quantiles, value_at
from streams.monitor.windows import Bucket

VALUES = st.floats(min_value=1e-3, max_value=1e9)


@given(st.lists(VALUES, min_size=1, max_size=300))
def test_quantiles_are_within_one_percent_of_the_exact_sample(values: list[float]) -> None:
    wanted = [0.0, 0.5, 0.95, 0.99, 1.0]
    found = quantiles(Counter(map(index_of, values)), wanted)
    assert found is not None
    for q, value in zip(wanted, found, strict=True):
        exact = float(np.quantile(values, q, method="lower"))
        assert abs(value - exact) <= exact * RELATIVE_ACCURACY * 1.0001


@given(st.lists(VALUES, max_size=50), st.lists(VALUES, max_size=50))
def test_merging_and_taking_away_is_exact(ours: list[float], theirs: list[float]) -> None:
    bucket, other = Bucket(), Bucket()
    for value in ours:
        bucket.add({}, {"duration_ms": value})
    for value in theirs:
        other.add({}, {"duration_ms": value})
    before = {name: dict(sketch) for name, sketch in bucket.sketches.items()}
    bucket.merge(other.counters, other.sketches)
    assert sum(sum(sketch.values()) for sketch in bucket.sketches.values()) == len(ours) + len(theirs)
    bucket.merge(other.counters, other.sketches, -1)
    assert bucket.sketches == before


def test_nothing_has_no_quantiles() -> None:
    assert quantiles({}, [0.5]) is None


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9, 1e300])
def test_values_beyond_the_range_count_at_its_ends(value: float) -> None:
    assert value_at(index_of(value)) == pytest.approx(1e-3 if value < 1 else 1e9, rel=0.02)
