"""Which parts of a text the entity model reads: the sentences with a word that could be a part of a person's name.

Most sentences of a chat hold none, and the model costs a hundred times what this does. A sentence is asked about when
it has a capitalised word that is not among the `COMMON_WORDS`, or a first name in lower case. What the model would have
found elsewhere is the screen's miss rate: see `guards.screening`, and docs/guards/pii.md for the measured one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from guards.pii.gazetteer import COMMON_WORDS, first_names
from guards.pii.script import CAPITALS
from guards.sentences import sentences

__all__ = ["MAX_MISS_RATE", "Window", "windows"]

MAX_MISS_RATE: Final = 0.005
"""Of texts in which the model would have found a person where it was not asked; a test holds the screen to it."""

WHOLE_CHARS: Final = 160  # a text this short is one window: cutting it saves nothing

_CAPITALISED: Final = re.compile(rf"(?<!\w)[{CAPITALS}][^\W_]*")
_LOWER: Final = re.compile(r"[a-z]{3,}")
_NEIGHBOUR: Final = re.compile(rf"[\s.]{{0,2}}[{CAPITALS}]|[.\s'’-]{{1,2}}[{CAPITALS}]")


class Window(NamedTuple):
    """Code points ``start`` to ``end`` of a text."""

    start: int
    end: int


def windows(text: str) -> tuple[Window, ...]:
    """The parts to read, in order; neighbouring sentences are one part. Linear in the text's length."""
    places = list(_places(text))
    if not places:
        return ()
    if len(text) <= WHOLE_CHARS:
        return (Window(0, len(text)),)
    found: list[Window] = []
    at = 0
    joins = False  # the sentence before was taken
    for sentence in sentences(text):
        while at < len(places) and places[at] < sentence.start:
            at += 1
        if at < len(places) and places[at] < sentence.end:
            if joins:
                found[-1] = Window(found[-1].start, sentence.end)
            else:
                found.append(Window(sentence.start, sentence.end))
            joins = True
        else:
            joins = False
    return tuple(found)


def _places(text: str) -> Iterator[int]:
    """Where words start that could be a part of a name, in order."""
    found = [match.start() for match in _CAPITALISED.finditer(text) if _could_be_name(text, match)]
    given = first_names()
    if not given.isdisjoint(_LOWER.findall(text)):
        found += [match.start() for match in _LOWER.finditer(text) if match.group() in given]
        found.sort()
    yield from found


def _could_be_name(text: str, match: re.Match[str]) -> bool:
    word = match.group()
    if word.lower() in COMMON_WORDS:
        return False
    if len(word) == 1 or word.isupper():  # `SQL` and `A` alone are no names; `JOHN SMITH` and `J. Smith` are
        return _NEIGHBOUR.match(text, match.end()) is not None
    return True
