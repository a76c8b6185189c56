"""What the recognizers say, and how they agree: kinds, context words, overlaps."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal

import msgspec

__all__ = ["DEFAULT_KINDS", "Found", "Kind", "Places", "has_context", "settle", "with_context"]

Kind = Literal[
    "CREDIT_CARD",
    "CRYPTO",
    "DATE_TIME",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "LOCATION",
    "MAC_ADDRESS",
    "MEDICAL_LICENSE",
    "NRP",
    "ORGANIZATION",
    "PERSON",
    "PHONE_NUMBER",
    "UK_NHS",
    "UK_NINO",
    "URL",
    "US_BANK_NUMBER",
    "US_DRIVER_LICENSE",
    "US_ITIN",
    "US_PASSPORT",
    "US_SSN",
]
"""Presidio's names."""

DEFAULT_KINDS: Final[tuple[Kind, ...]] = (
    "CREDIT_CARD",
    "CRYPTO",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MEDICAL_LICENSE",
    "PERSON",
    "PHONE_NUMBER",
    "UK_NHS",
    "UK_NINO",
    "US_BANK_NUMBER",
    "US_DRIVER_LICENSE",
    "US_ITIN",
    "US_PASSPORT",
    "US_SSN",
)
"""What identifies or endangers a person by itself. Places, dates, organisations and links do not: redacting every
city makes support traffic useless; a policy can ask for them."""

CONTEXT_CHARS: Final = 64  # before a match; Presidio looks at five words
CONTEXT_BOOST: Final = 0.35  # Presidio's
CONTEXT_FLOOR: Final = 0.6  # over the policy's usual threshold of 0.5; Presidio's 0.4 serves no threshold


class Found(msgspec.Struct, frozen=True):
    """One entity in a text: code points ``start`` to ``end`` (exclusive), score 0..1."""

    kind: Kind
    start: int
    end: int
    score: float


@lru_cache(maxsize=64)
def _words(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(re.escape(word) for word in words) + r")", re.IGNORECASE)


def has_context(text: str, start: int, words: tuple[str, ...]) -> bool:
    """Whether a word that begins with one of ``words`` stands shortly before ``start``."""
    return _words(words).search(text, max(0, start - CONTEXT_CHARS), start) is not None


def with_context(score: float) -> float:
    """A score of 0..1, raised by a context word."""
    return min(1.0, max(score + CONTEXT_BOOST, CONTEXT_FLOOR))


class Places:
    """Ranges that do not overlap, found in logarithmic time: a text may hold thousands."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def overlap(self, start: int, end: int) -> bool:
        after = bisect_left(self._starts, end)
        return after > 0 and self._ends[after - 1] > start

    def add(self, start: int, end: int) -> None:
        """Add a range that overlaps none."""
        at = bisect_left(self._starts, start)
        self._starts.insert(at, start)
        self._ends.insert(at, end)


def settle(found: Iterable[Found]) -> list[Found]:
    """Of entities that overlap the surest stays (of equals the longest, then the first); in order of their start."""
    kept: list[Found] = []
    places = Places()
    for item in sorted(found, key=lambda f: (-f.score, f.start - f.end, f.start, f.kind)):
        if not places.overlap(item.start, item.end):
            places.add(item.start, item.end)
            kept.append(item)
    return sorted(kept, key=lambda f: f.start)
