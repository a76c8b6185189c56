"""Figures of a ranking: where the right candidates stand among all, when the lower risk is the better.

Candidates of one score stand in no order, so each figure is its expected value over all orders of the tied.
"""

from __future__ import annotations

from math import comb

import msgspec
import numpy as np

from guards.evaluation.scores import Array

__all__ = ["Ranks", "ranks_of"]


class Ranks(msgspec.Struct, frozen=True):
    """``mrr``: 1 / the first right one's place; ``map``: the mean of precision at the places of the right ones (equal
    to ``mrr`` where one is right); ``recall_at_1``: the chance that a right one stands first."""

    mrr: float
    map: float
    recall_at_1: float


def ranks_of(scores: Array, right: Array) -> Ranks:
    """Scores (n,), higher is better, and which candidates are right (n,), at least one of them."""
    order = np.argsort(-scores, kind="stable")
    ordered, is_right = scores[order], right[order].astype(bool)
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(ordered)]
    total = int(is_right.sum())
    reciprocal = precision = first = 0.0
    before = right_before = 0
    for start, end in zip(starts, ends, strict=True):
        tied, right_tied = int(end - start), int(is_right[start:end].sum())
        if right_tied:
            places = np.arange(1, tied + 1)
            # A right one at the j-th of the tied places has on average so many of the other right ones before it.
            others = (right_tied - 1) * (places - 1) / max(tied - 1, 1)
            precision += right_tied / tied * float(((right_before + 1 + others) / (before + places)).sum())
            if not right_before:
                chances = [comb(tied - int(j), right_tied - 1) / comb(tied, right_tied) for j in places]
                reciprocal = sum(chance / (before + int(j)) for chance, j in zip(chances, places, strict=True))
                first = right_tied / tied if before == 0 else 0.0
        before += tied
        right_before += right_tied
    return Ranks(reciprocal, precision / total, first)
