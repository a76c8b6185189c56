"""Phone numbers through `phonenumbers`, asked only about runs of digits that can be one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import phonenumbers

from guards.pii.found import Found, Places, has_context, with_context

__all__ = ["DEFAULT_REGIONS", "PhoneScanner"]

DEFAULT_REGIONS: Final = ("US", "GB", "DE", "FR", "IL", "IN", "CA", "BR")
"""Presidio's. A number with a plus sign is found from any country."""

CONTEXT: Final = (
    *("phone", "number", "telephone", "tel", "cell", "mobile", "mobil", "call", "dial", "fax", "whatsapp", "voicemail"),
    *("text me", "reach", "answering", "office", "teléfono", "telefon", "téléphone", "móvil", "handy"),
)

INTERNATIONAL_SCORE: Final = 0.75  # a plus sign and a valid number
GROUPED_SCORE: Final = 0.6  # a valid number of a default region, written in groups
SHAPED_SCORE: Final = 0.5  # written as Americans write them, but the area code does not exist
PLAIN_SCORE: Final = 0.4  # Presidio's: valid, but any order number of ten digits can be
GROUPED_ONLY_SCORE: Final = 0.25  # groups of digits that no default region uses: counts with a context word only

# Seven digits and more with what people write between them; bounded, so that a table of numbers is many candidates.
_CANDIDATE: Final = re.compile(
    r"(?<![\w$€£#/-])(?<!\d[.,])[+(]{0,2}\d(?:[ \u00a0./\u2010-\u2015-]{0,2}[()]?[ \u00a0./\u2010-\u2015-]?\d){5,16}"
    r"(?:x\d{1,6})?(?!\w)"
)
_AMERICAN: Final = re.compile(r"(?:(?:\+1|001|1)[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?:x\d{1,6})?")
_GROUPED: Final = re.compile(r"\(?\d{2,4}\)?[ -]?\d{2,7}(?:[ -]\d{2,5}){0,4}")
_DATE: Final = re.compile(r"(?:19|20)\d\d[ .-]\d\d[ .-]\d\d|\d\d[ .-]\d\d[ .-](?:19|20)\d\d")
# `phonenumbers` takes a quarter of a millisecond per candidate and region. A table of numbers is thousands of them: the
# first are asked about in every region, the next only where their count of digits fits, the rest by shape alone.
THOROUGH_TRIES: Final = 256
TRIES: Final = 1_024
_MARGIN_CHARS: Final = 12  # an extension ("ext. 123"), and the neighbours that `phonenumbers` looks at


class PhoneScanner:
    """``regions``: ISO 3166 codes in whose national formats numbers are read. Thread-safe: it only reads."""

    def __init__(self, regions: Sequence[str] = DEFAULT_REGIONS) -> None:
        self._regions = tuple(regions)
        self._national: dict[str, re.Pattern[str]] = {}
        for region in self._regions:
            metadata = phonenumbers.PhoneMetadata.metadata_for_region(region)
            assert metadata is not None  # the region was checked
            assert metadata.general_desc is not None
            pattern = metadata.general_desc.national_number_pattern
            self._national[region] = re.compile(rf"(?:{metadata.national_prefix or ''})?(?:{pattern})")

    def find(self, text: str, taken: Places) -> Iterator[Found]:
        """Phone numbers that touch nothing of ``taken`` (cards and accounts have digits too)."""
        tries = 0
        for candidate in _CANDIDATE.finditer(text):
            start, end = candidate.span()
            if taken.overlap(start, end):
                continue
            regions = self._plausible(text[start:end], tries)
            tries += len(regions)
            found = self._valid(text, start, end, regions) or _shaped(text, start, end)
            if found is not None:
                score = with_context(found.score) if has_context(text, start, CONTEXT) else found.score
                yield Found(found.kind, found.start, found.end, score)

    def _plausible(self, number: str, tries: int) -> tuple[str, ...]:
        """Regions in which to look for the number, given how often `phonenumbers` was asked about this text."""
        if tries >= TRIES:
            return ()
        if number.startswith(("+", "(+")):  # the plus sign says the country: one region answers for all
            return self._regions[:1]
        if tries < THOROUGH_TRIES:
            return self._regions
        digits = re.sub(r"\D", "", number)
        return tuple(region for region in self._regions if self._national[region].fullmatch(digits))

    def _valid(self, text: str, start: int, end: int, regions: Sequence[str]) -> Found | None:
        """The number that `phonenumbers` accepts."""
        begin = max(0, start - 2)
        window = text[begin : end + _MARGIN_CHARS]
        for region in regions:
            for match in phonenumbers.PhoneNumberMatcher(window, region, leniency=phonenumbers.Leniency.VALID):
                if begin + match.start < end:
                    return Found("PHONE_NUMBER", begin + match.start, begin + match.end, _valid_score(match.raw_string))
        return None


def _valid_score(number: str) -> float:
    if number.lstrip("(").startswith("+"):
        return INTERNATIONAL_SCORE
    return PLAIN_SCORE if number.isdigit() else GROUPED_SCORE


def _shaped(text: str, start: int, end: int) -> Found | None:
    """A number that no default region has, but that is written like one."""
    number = text[start:end]
    if _AMERICAN.fullmatch(number):
        return Found("PHONE_NUMBER", start, end, SHAPED_SCORE)
    if _GROUPED.fullmatch(number) and not number.isdigit() and not _DATE.fullmatch(number):
        return Found("PHONE_NUMBER", start, end, GROUPED_ONLY_SCORE)
    return None
