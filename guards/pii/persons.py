"""Persons without the entity model: what people say before a name, first names, lists of names, names in lower case."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from guards.pii.found import Found, Places
from guards.pii.gazetteer import COMMON_WORDS, NAMES_OF_PLACES, NOT_A_NAME_ALONE, first_names, surnames
from guards.pii.names import person_score
from guards.pii.script import CAPITALS, NAME, NAME_WORD, PARTICLES

__all__ = ["beside_persons", "persons"]

CUE_SCORE: Final = 0.7  # `my name is …`, `Mr. …`
FULL_NAME_SCORE: Final = 0.7  # a first name and more capitalised words
FIRST_NAME_SCORE: Final = 0.55  # a first name alone, capitalised
FOREIGN_FIRST_NAME_SCORE: Final = 0.45
LISTED_SCORE: Final = 0.55  # in a list with a person
LOWER_CASE_SCORE: Final = 0.6  # first name and surname
LOWER_FIRST_SCORE: Final = 0.4  # under the usual threshold: too many are words

_ANY_NAME: Final = rf"({NAME}|[a-z][^\W\d_]{{2,30}}(?: [a-z][^\W\d_]{{2,30}})?)"
_RELATIVES: Final = (
    r"wife|husband|son|daughter|brother|sister|mother|father|mom|mum|dad|boss|friend|girlfriend|boyfriend|partner"
    r"|colleague|neighbou?r|roommate|uncle|aunt|cousin|nephew|niece|grandmother|grandfather|fiancée?|manager|teacher"
    r"|doctor|therapist|lawyer|landlord|ex"
)
_SPEECH: Final = r"said|says|asked|asks|replied|shouted|told|wrote|explained|whispered|answered|exclaimed|yelled"

# Names that people announce are taken in lower case too; the rest wants capitals.
_ANNOUNCED: Final = (
    re.compile(
        r"\b(?i:(?:my|his|her|their|your|the) (?:full |first |last |maiden |real |nick)?name(?: is|['’]s|:)"
        r"|(?:me|her|him)"
        r" llamo|me llamo|mi nombre es|je m['’]appelle|mon nom est|ich heiße|mein name ist|mi chiamo|il mio nome è)"
        rf" (?:(?:Mr|Mrs|Ms|Miss|Dr)\.? )?{_ANY_NAME}"
    ),
    re.compile(
        r"(?:^|[.,;>|?\n\-])[ \t]*(?i:(?:full |first |last |customer |client |patient |contact |user )?name"
        r"|surname|nombre"
        r"|apellidos?|nom|prénom|vorname|nachname|nome|cognome|paciente|patient|user|customer|client|from|to|cc|attn"
        r"|m[ée]dico|remitido por|responsable cl[ií]nico|firmado|autor(?:es)?|arzt|patientin|ansprechpartner)[ \t]*:"
        rf"[ \t]*(?:(?:Mr|Mrs|Ms|Miss|Dr|Dra|D|Dña|Sr|Sra|Herr|Frau)\.? )?{_ANY_NAME}"
    ),
)
_CUES: Final = (
    re.compile(rf"(?<!\w)(?:Mr|Mrs|Ms|Miss|Mx|Dr|Dra|Prof|Sr|Sra|Srta|Herr|Frau|Mme|Mlle|Dña)\b\.? {{1,2}}({NAME})"),
    re.compile(rf"\b(?i:my|his|her|our|your|their) (?:{_RELATIVES}),? ({NAME})"),
    re.compile(
        rf"(?<!\w)({NAME})['’]s (?:address|phone|e-?mail|number|birthday|account|house|name|wife|husband|mother"
        rf"|father|son|daughter)\b"
    ),
    re.compile(rf"\b(?i:call(?:s|ed|ing)?|named?|names) (?:me|him|her) ({NAME})"),
    re.compile(rf"\b(?:{_SPEECH}) ({NAME})(?=\s*(?:[.,;:!?\"”]|to\b|$))"),
    re.compile(rf"(?:^|[.!?\"”] |\n)(?!The |A |An )({NAME}),? (?:{_SPEECH})\b"),
    re.compile(rf"\b(?i:directed|written|produced|composed|performed|sung|painted) by ({NAME})"),
    re.compile(rf"\b(?i:starring|featuring|novelist|author|actor|actress|singer|producer|director|composer) ({NAME})"),
    re.compile(rf"\b(?i:add|under|with|assistant to|speak to|talk to|up with) ({NAME}) (?:as|in|at|and the|about)\b"),
)
# Words with which what looks like a name is an organisation, a street or a thing.
_THINGS: Final = re.compile(
    r",? (?i:inc|ltd|llc|llp|corp|co|company|gmbh|group|university|college|school|hospital|clinic|bank|street|st|avenue"
    r"|ave|road|rd|drive|lane|boulevard|square|park|airport|bridge|hotel|church|county|city|island|river|lake|mountain"
    r"|valley|beach|museum|theat(?:er|re)|stadium|center|centre|foundation|institute|association|award|prize|act|law"
    r"|theorem|equation|syndrome|disease|effect|scale|index|method|algorithm|model|war|day|festival|cup|league|records"
    r"|studios?|pictures|airlines?|motors?|store|shop|restaurant|cafe|pizza|bar|club|house|tower|building|plaza)\b"
)
_BEFORE_PLACES: Final = frozenset(
    ["san", "santa", "santo", "saint", "st", "los", "las", "puerto", "new", "fort", "mount", "port", "lake", "el"]
)
_RUN: Final = re.compile(rf"(?<![\w.@/-]){NAME}(?![\w@/])")
_BETWEEN: Final = re.compile(r",\s{1,2}(?:(?:and|or|&)\s)?|\s(?:and|or|&|y|und|et|e)\s")
_LOWER_TITLE: Final = re.compile(r"(?<![\w.])(?:mr|mrs|ms|dr)\. ([a-z]{3,30})(?: ([a-z]{3,30}))?(?!\w)")
_LOWER_PAIR: Final = re.compile(r"(?<![\w@.'’-])[a-z]{3,} (?=[a-z]{3,}(?![\w@'’]))")
_LINE_END: Final = re.compile(r"[ \t.]*(?:\n|$)")
_LOWER_WORD: Final = re.compile(r"(?<![\w@.'’/-])[a-z]{4,}(?![\w@/-])")
_WORD: Final = re.compile(rf"{NAME_WORD}|[{CAPITALS}]\.|{PARTICLES}\b")


class _Run(NamedTuple):
    """Capitalised words in a row that could be a name."""

    start: int
    end: int


def persons(text: str, *, foreign: bool = False) -> Iterator[Found]:
    """Persons by cue or first name; they may overlap. Linear in the text's length.

    ``foreign``: not English. There a first name alone is more often a word (and in German every noun has a capital).
    """
    for cue in _ANNOUNCED:
        for match in cue.finditer(text):
            yield from _announced(text, *match.span(1))
    runs = _runs(text)
    if runs:
        for cue in _CUES:
            for match in cue.finditer(text):
                for run in _trimmed(text, *match.span(1)):
                    if not _is_thing(text, run):
                        yield Found("PERSON", run.start, run.end, CUE_SCORE)
    for match in _LOWER_TITLE.finditer(text):
        more = match.group(2) in surnames() and match.group(2) not in COMMON_WORDS if match.group(2) else False
        yield Found("PERSON", match.start(1), match.end(2 if more else 1), CUE_SCORE)
    yield from _first_names(text, runs, FOREIGN_FIRST_NAME_SCORE if foreign else FIRST_NAME_SCORE)
    yield from _lower_case(text)


def beside_persons(text: str, found: Sequence[Found]) -> Iterator[Found]:
    """Names in one list with a person of ``found``: of `Ewe, Mary and Oduya` the model knows one. For English text."""
    runs = _runs(text)
    if len(runs) < 2 or not found:
        return
    taken = Places()
    for item in sorted(found, key=lambda f: f.start):
        if not taken.overlap(item.start, item.end):
            taken.add(item.start, item.end)
    first = 0
    for last in range(len(runs)):
        if last + 1 < len(runs) and _BETWEEN.fullmatch(text, runs[last].end, runs[last + 1].start):
            continue
        chain, first = runs[first : last + 1], last + 1
        if len(chain) > 1 and any(taken.overlap(run.start, run.end) for run in chain):
            for run in chain:
                if not taken.overlap(run.start, run.end) and not _is_place(text, run) and not _is_thing(text, run):
                    yield Found("PERSON", run.start, run.end, LISTED_SCORE)


def _runs(text: str) -> list[_Run]:
    return [run for match in _RUN.finditer(text) for run in _trimmed(text, *match.span())]


def _trimmed(text: str, start: int, end: int) -> Iterator[_Run]:
    """Without the common words at either end: `Dear Jane`, `When Mary`."""
    words = [match.span() for match in re.finditer(r"\S+", text[start:end])]
    while words and _common(text[start + words[0][0] : start + words[0][1]]):
        words.pop(0)
    while words and _common(text[start + words[-1][0] : start + words[-1][1]]):
        words.pop()
    if words:
        run = _Run(start + words[0][0], start + words[-1][1])
        name = text[run.start : run.end]
        if name.endswith(("'s", "’s")):
            run = _Run(run.start, run.end - 2)
        if person_score(text[run.start : run.end]) > 0:
            yield run


def _common(word: str) -> bool:
    word = word.lower()
    return word in COMMON_WORDS or re.split(r"['’]", word)[0] in COMMON_WORDS


def _announced(text: str, start: int, end: int) -> Iterator[Found]:
    words = text[start:end].split(" ")
    if words[0][:1].isupper():
        for run in _trimmed(text, start, end):
            yield Found("PERSON", run.start, run.end, CUE_SCORE)
        return
    given = first_names()
    if words[0] in given or (len(words) > 1 and words[1] in surnames() and words[0] not in COMMON_WORDS):
        alone = _LINE_END.match(text, end) is not None  # nothing but the name stands there
        more = len(words) > 1 and words[1] not in COMMON_WORDS and (alone or words[1] in surnames())
        yield Found("PERSON", start, end if more else start + len(words[0]), CUE_SCORE)


def _first_names(text: str, runs: Sequence[_Run], alone_score: float) -> Iterator[Found]:
    given = first_names()
    for run in runs:
        words = [(match.group(), run.start + match.start()) for match in _WORD.finditer(text[run.start : run.end])]
        at = next((i for i, (word, _) in enumerate(words) if word.lower() in given), None)
        if at is None or _is_thing(text, run) or (at > 0 and words[at - 1][0].lower() in _BEFORE_PLACES):
            continue
        if at == 0 and len(words) > 1:
            yield Found("PERSON", run.start, run.end, FULL_NAME_SCORE)
        elif len(words) > 1 or not text[run.start : run.end].isupper():
            yield Found("PERSON", words[at][1], run.end, alone_score)


def _lower_case(text: str) -> Iterator[Found]:
    given = first_names()
    words = _LOWER_WORD.findall(text)
    if given.isdisjoint(words):
        return
    for match in _LOWER_WORD.finditer(text):
        if match.group() in given:
            yield Found("PERSON", *match.span(), LOWER_FIRST_SCORE)
    family = surnames()
    for match in _LOWER_PAIR.finditer(text):
        second = re.compile(r"[a-z]+").match(text, match.end())
        assert second is not None
        word = second.group()
        if match.group()[:-1] in given and word in family and word not in COMMON_WORDS | NOT_A_NAME_ALONE:
            yield Found("PERSON", match.start(), second.end(), LOWER_CASE_SCORE)


def _is_thing(text: str, run: _Run) -> bool:
    return _THINGS.match(text, run.end) is not None or _THINGS.search(text, run.start, run.end) is not None


def _is_place(text: str, run: _Run) -> bool:
    return any(word.lower() in NAMES_OF_PLACES for word in text[run.start : run.end].split())
