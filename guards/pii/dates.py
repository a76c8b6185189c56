"""Dates of birth, ages, and dates in figures; the entity model finds dates in words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

from guards.pii.found import Found, Kind

__all__ = ["DATE_KINDS", "dates"]

DATE_KINDS: Final = frozenset({"AGE", "DATE_OF_BIRTH", "DATE_TIME"})

SCORE: Final = 0.6  # Presidio's for a date in figures
BIRTH_SCORE: Final = 0.8  # a date where somebody was born

_MONTH: Final = (
    r"(?:jan(?:uary|uar|vier)?|feb(?:ruary|ruar)?|févr?(?:ier)?|mar(?:ch|s|zo)?|märz|apr(?:il|ile)?|avril|abril"
    r"|may|mai|mayo"
    r"|june?|juni|juin|junio|july?|juli|juillet|julio|aug(?:ust)?|août|agosto|sept?(?:ember|embre|iembre)?"
    r"|oct(?:ober|obre|ubre)?"
    r"|okt(?:ober)?|nov(?:ember|embre|iembre)?|de[cz](?:ember)?|déc(?:embre)?|diciembre|enero|ene|febrero"
    r"|gennaio|febbraio"
    r"|maggio|giugno|luglio|settembre|ottobre|dicembre)"
)
_DAY: Final = r"(?:0?[1-9]|[12]\d|3[01])"
_YEAR: Final = r"(?:(?:18|19|20)\d\d)"
_DATE: Final = (
    rf"(?:{_DAY}[./-](?:{_DAY})[./-](?:{_YEAR}|\d\d)|{_YEAR}[./-](?:0?[1-9]|1[0-2])[./-]{_DAY}"
    rf"|{_DAY}(?:st|nd|rd|th|\.|er)?(?: of| de)?[ -]{_MONTH}\.?,?(?: de| del)?(?:[ -]{_YEAR}|[ -]\d\d(?!\d))?"
    rf"|{_MONTH}\.? {_DAY}(?:st|nd|rd|th)?(?:,? {_YEAR})?(?!\d)|{_MONTH},?(?: of| del?)? {_YEAR})"
)
_ANY_DATE: Final = re.compile(rf"(?<![\w./-]){_DATE}(?![\w/-]|\.\d)", re.IGNORECASE)
_BIRTH: Final = re.compile(
    r"(?<!\w)(?:(?:date|day|place and date) of birth|d\.?o\.?b\.?|born(?: on| in)?|birth ?da(?:y|te)(?: is)?"
    r"|geboren(?: am)?"
    r"|geburtsdatum|geb\.|fecha de nacimiento|nacid[oa](?: el)?|née? le|date de naissance|nat[oa] il"
    r"|data di nascita|geboortedatum)"
    rf"[?.:,]?(?:'s)?[ \t]*(?:(?:it['’]s|is|on|am|est|es|ist|le|the)[ \t]*:?[ \t]*){{0,2}}({_DATE}"
    rf"|{_YEAR}(?!\d))(?![\w/-])",
    re.IGNORECASE,
)
_AGE: Final = re.compile(
    r"(?<![\w.,-])(?:(?:1[01]\d|\d{1,2})(?:[ -]years?[ -]olds?|[ -]y/?o\b| ?yrs?\.? old| años(?: de edad)?"
    r"| ans\b| anni\b"
    r"| Jahre alt| jährige[rn]?|-jährige[rn]?| meses de edad| months? old))(?!\w)"
    r"|(?<!\w)(?:aged?|edad|alter|âge|età)(?:[ \t]*:[ \t]*| (?:of |is )?)(?P<age>(?:1[01]\d"
    r"|\d{1,2})(?: (?:years?|años|ans|anni|jahre|meses))?)(?![\w.,]?\d)",
    re.IGNORECASE,
)
_GATE: Final = re.compile(r"\d")


def dates(text: str, kinds: Collection[Kind]) -> Iterator[Found]:
    """Dates and ages; they may overlap. Linear in the text's length."""
    if DATE_KINDS.isdisjoint(kinds) or _GATE.search(text) is None:
        return
    if "DATE_OF_BIRTH" in kinds:
        for match in _BIRTH.finditer(text):
            yield Found("DATE_OF_BIRTH", *match.span(1), BIRTH_SCORE)
    if "AGE" in kinds:
        for match in _AGE.finditer(text):
            yield Found("AGE", *match.span("age" if match.group("age") else 0), SCORE)
    if "DATE_TIME" in kinds:
        for match in _ANY_DATE.finditer(text):
            yield Found("DATE_TIME", *match.span(), SCORE)
