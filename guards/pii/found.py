"""What the recognizers say, and how they agree: kinds, context words, overlaps."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal

import msgspec

__all__ = ["DEFAULT_KINDS", "Found", "Kind", "Places", "has_context", "joined", "settle", "with_context"]

Kind = Literal[
    "ABA_ROUTING_NUMBER",
    "AGE",
    "AU_MEDICARE",
    "AU_TFN",
    "CA_SIN",
    "CREDIT_CARD",
    "CRYPTO",
    "DATE_OF_BIRTH",
    "DATE_TIME",
    "DE_FUEHRERSCHEIN",
    "DE_HEALTH_INSURANCE",
    "DE_ID_CARD",
    "DE_PASSPORT",
    "DE_SOCIAL_SECURITY",
    "DE_TAX_ID",
    "DE_TAX_NUMBER",
    "EMAIL_ADDRESS",
    "ES_NIE",
    "ES_NIF",
    "ES_PASSPORT",
    "FI_PERSONAL_IDENTITY_CODE",
    "FR_NIR",
    "IBAN_CODE",
    "ID_NUMBER",
    "IN_AADHAAR",
    "IN_PAN",
    "IN_PASSPORT",
    "IN_VOTER",
    "IP_ADDRESS",
    "IT_DRIVER_LICENSE",
    "IT_FISCAL_CODE",
    "IT_IDENTITY_CARD",
    "IT_PASSPORT",
    "KR_DRIVER_LICENSE",
    "KR_FRN",
    "KR_PASSPORT",
    "KR_RRN",
    "LICENSE_PLATE",
    "LOCATION",
    "MAC_ADDRESS",
    "MEDICAL_LICENSE",
    "NG_NIN",
    "NRP",
    "ORGANIZATION",
    "PERSON",
    "PHONE_NUMBER",
    "PL_PESEL",
    "SE_PERSONNUMMER",
    "SG_NRIC_FIN",
    "STREET_ADDRESS",
    "TH_TNIN",
    "TR_NATIONAL_ID",
    "UK_DRIVING_LICENCE",
    "UK_NHS",
    "UK_NINO",
    "UK_PASSPORT",
    "URL",
    "US_BANK_NUMBER",
    "US_DRIVER_LICENSE",
    "US_ITIN",
    "US_MBI",
    "US_NPI",
    "US_PASSPORT",
    "US_SSN",
    "ZA_ID_NUMBER",
    "ZIP_CODE",
]
"""Presidio's names where it has one."""

_NOT_BY_DEFAULT: Final = frozenset({"AGE", "DATE_TIME", "LOCATION", "MAC_ADDRESS", "NRP", "ORGANIZATION", "URL"})

DEFAULT_KINDS: Final[tuple[Kind, ...]] = tuple(kind for kind in Kind.__args__ if kind not in _NOT_BY_DEFAULT)  # type: ignore[attr-defined]
"""What identifies or endangers a person by itself. Places, dates, ages, organisations and links do not: redacting every
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


@lru_cache(maxsize=256)
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


def joined(found: Iterable[Found]) -> list[Found]:
    """Entities of one kind, those that overlap made one with the highest score: of a name each saw another part."""
    merged: list[Found] = []
    for item in sorted(found, key=lambda f: (f.start, -f.end)):
        if merged and item.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Found(last.kind, last.start, max(last.end, item.end), max(last.score, item.score))
        else:
            merged.append(item)
    return merged


def settle(found: Iterable[Found]) -> list[Found]:
    """Of entities that overlap the surest stays (of equals the longest, then the first); in order of their start."""
    kept: list[Found] = []
    places = Places()
    for item in sorted(found, key=lambda f: (-f.score, f.start - f.end, f.start, f.kind)):
        if not places.overlap(item.start, item.end):
            places.add(item.start, item.end)
            kept.append(item)
    return sorted(kept, key=lambda f: f.start)
