"""Cut a text into sentences, by rules alone: linear time, no model, places kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["Sentence", "passages", "sentences"]

_END: Final = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”]*|\n\s*\n|\n(?=\s*(?:[-*•·]|\d{1,3}[.)])\s)")
# A full stop after these ends no sentence (compared in lower case, without the stop).
_ABBREVIATIONS: Final = frozenset(
    re.findall(
        r"\S+",
        """mr mrs ms dr prof st jr sr vs etc no nr inc ltd co corp fig vol pp ca approx e.g i.e u.s u.k z.b d.h u.a bzw
        usw evtl ggf inkl jan feb mar apr aug sept sep oct okt nov dec dez mme mlle sra av art p.ej ecc sig dott""",
    )
)


class Sentence(NamedTuple):
    """A sentence and its place: code points of the text, end exclusive, without the white space around it."""

    text: str
    start: int
    end: int


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text in order, cut at full stops, blank lines and list items; wordless ones are left out."""
    found: list[Sentence] = []
    start = 0
    for match in _END.finditer(text):
        if match.group() == "." and _goes_on(text, start, match.start(), match.end()):
            continue
        found.extend(_stripped(text, start, match.end()))
        start = match.end()
    found.extend(_stripped(text, start, len(text)))
    return found


def passages(text: str, max_chars: int) -> list[Sentence]:
    """Neighbouring sentences joined up to ``max_chars``, longer sentences cut at that length: no word is left out."""
    found: list[Sentence] = []
    start = end = None
    for sentence in sentences(text):
        if start is not None and end is not None and sentence.end - start > max_chars:
            found.extend(_cut(text, start, end, max_chars))
            start = None
        start, end = (sentence.start if start is None else start), sentence.end
    if start is not None and end is not None:
        found.extend(_cut(text, start, end, max_chars))
    return found


def _cut(text: str, start: int, end: int, max_chars: int) -> Iterator[Sentence]:
    for left in range(start, end, max_chars):
        yield from _stripped(text, left, min(left + max_chars, end))


def _stripped(text: str, start: int, end: int) -> Iterator[Sentence]:
    piece = text[start:end]
    body = piece.strip()
    if any(char.isalnum() for char in body):
        left = start + len(piece) - len(piece.lstrip())
        yield Sentence(body, left, left + len(body))


def _goes_on(text: str, start: int, stop: int, after: int) -> bool:
    """Whether the single full stop at ``stop`` is an abbreviation's, an ordinal's or an initial's."""
    head = text[max(start, stop - 12) : stop].split()
    word = head[-1].lower().lstrip("(\"'“„«") if head else ""
    rest = text[after : after + 40].lstrip()
    if rest and rest[0].islower():
        return True
    return word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()) or (word.isdigit() and len(word) <= 2)
