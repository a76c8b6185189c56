"""Found places against labelled ones: by character, by overlap, and exactly; whatever the label, and label by label.

A found span *matches* a labelled one where their intersection is at least half of their union; each matches at most
one, the best pairs first. ``exact`` wants the same start and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from guards.evaluation.scores import Array

__all__ = ["MIN_OVERLAP", "Labelled", "Place", "char_counts", "matches", "span_counts"]

MIN_OVERLAP: Final = 0.5


class Place(msgspec.Struct, frozen=True, order=True):
    """Code points ``start`` to ``end`` (exclusive); ``label``: what it is, or is taken for; ``score``: if found."""

    start: int
    end: int
    label: str = ""
    score: float = 1.0

    @property
    def length(self) -> int:
        return self.end - self.start

    def overlap(self, other: Place) -> int:
        return max(0, min(self.end, other.end) - max(self.start, other.start))


class Labelled(msgspec.Struct, frozen=True):
    """A text's labelled places. ``ignored``: places with labels that were not asked for, neither wanted nor wrong."""

    length_chars: int
    wanted: tuple[Place, ...]
    ignored: tuple[Place, ...] = ()

    def judged(self, found: Sequence[Place]) -> list[Place]:
        """The found places without those that lie mostly in ignored ones and touch no wanted one."""
        if not self.ignored:
            return list(found)
        return [
            place
            for place in found
            if any(place.overlap(wanted) for wanted in self.wanted)
            or 2 * sum(place.overlap(ignored) for ignored in self.ignored) < place.length
        ]


def _mask(length_chars: int, places: Sequence[Place]) -> Array:
    mask = np.zeros(length_chars, dtype=bool)
    for place in places:
        mask[place.start : place.end] = True
    return mask


def char_counts(labelled: Labelled, found: Sequence[Place]) -> tuple[int, int, int]:
    """Characters that are both, that were found, and that are labelled; ignored ones are in none of the three."""
    wanted = _mask(labelled.length_chars, labelled.wanted)
    covered = _mask(labelled.length_chars, found) & (wanted | ~_mask(labelled.length_chars, labelled.ignored))
    return int((wanted & covered).sum()), int(covered.sum()), int(wanted.sum())


def span_counts(labelled: Labelled, found: Sequence[Place], *, exact: bool = False) -> tuple[int, int, int]:
    """Matching pairs, found places, labelled places."""
    judged = labelled.judged(found)
    return len(matches(labelled.wanted, judged, exact=exact)), len(judged), len(labelled.wanted)


def matches(wanted: Sequence[Place], found: Sequence[Place], *, exact: bool = False) -> list[tuple[int, int]]:
    """Pairs (index in ``wanted``, index in ``found``), no index twice, the best overlaps first."""
    least = 1.0 if exact else MIN_OVERLAP
    pairs: list[tuple[float, int, int]] = []
    by_start = sorted(range(len(found)), key=lambda index: found[index].start)
    begin = 0
    longest = max((place.length for place in found), default=0)
    for i in sorted(range(len(wanted)), key=lambda index: wanted[index].start):
        while begin < len(by_start) and found[by_start[begin]].start < wanted[i].start - longest:
            begin += 1
        for j in by_start[begin:]:
            if found[j].start >= wanted[i].end:
                break
            shared = wanted[i].overlap(found[j])
            union = wanted[i].length + found[j].length - shared
            if shared and shared / union >= least:
                pairs.append((shared / union, i, j))
    taken_wanted: set[int] = set()
    taken_found: set[int] = set()
    chosen: list[tuple[int, int]] = []
    for _, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if i not in taken_wanted and j not in taken_found:
            taken_wanted.add(i)
            taken_found.add(j)
            chosen.append((i, j))
    return chosen
