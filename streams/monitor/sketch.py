"""Quantiles within 1 % of the value: a DDSketch (Masson, Rim, Lee, VLDB 2019) as a plain dict, index → count.

Counts are integers, so sketches merge and un-merge exactly, in any order; that is what lets windows be kept as sums of
differences. Only what is not zero is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["RELATIVE_ACCURACY", "Sketch", "index_of", "quantiles", "value_at"]

Sketch = dict[int, int]

RELATIVE_ACCURACY: Final = 0.01
"""A quantile differs from the exact sample by at most this share of it (within `SMALLEST` and `LARGEST`)."""

SMALLEST: Final = 1e-3
"""Anything below counts as this: a microsecond, where values are milliseconds."""

LARGEST: Final = 1e9
"""Anything above counts as this: 11 days in milliseconds. With `SMALLEST` it bounds a sketch to 1,383 entries."""

_GAMMA: Final = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
_LOG_GAMMA: Final = math.log(_GAMMA)


def index_of(value: float) -> int:
    """The entry that a sample falls into: the i with gamma^(i-1) < value <= gamma^i."""
    return math.ceil(math.log(min(max(value, SMALLEST), LARGEST)) / _LOG_GAMMA)


def value_at(index: int) -> float:
    """The value within 1 % of every sample of the entry."""
    return float(2 * _GAMMA**index / (_GAMMA + 1))


def quantiles(sketch: Mapping[int, int], wanted: Sequence[float]) -> list[float] | None:
    """The samples at ranks ``q * (count - 1)``, for ascending ``wanted`` in 0..1; ``None`` for an empty sketch."""
    count = sum(sketch.values())
    if count <= 0:
        return None
    found: list[float] = []
    seen = 0
    entries = iter(sorted(sketch.items()))
    index, number = next(entries)
    for q in wanted:
        rank = math.floor(q * (count - 1))
        while seen + number <= rank:
            seen += number
            index, number = next(entries)
        found.append(value_at(index))
    return found
