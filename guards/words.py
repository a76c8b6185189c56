"""Words of a text for lexical comparison: folded, without function words, shortened to a stem; numbers and names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from guards.folding import fold

__all__ = ["Word", "content_stems", "english_share", "function_share", "names", "numbers", "stem", "words"]

_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
STEM_CHARS: Final = 6  # long enough to tell words apart, short enough for inflections of European languages

_ENGLISH: Final = frozenset(
    re.findall(
        r"\S+",
        """a an the and or but if then else of in on at to for from by with about as into onto over under after before
        between during is are was were be been being am do does did done has have had having will would
        shall should can could may might must not no nor so than too very just also only own same such that
        this these those there here it its he him his she her hers they them their theirs we us our ours you
        your yours i me my mine who whom whose which what when where why how all any both each few more most
        other some one ones s t d ll re ve m don didn doesn isn aren wasn weren won wouldn couldn shouldn
        yes okay ok well really like know think get got""",
    )
)
# German, Spanish, French, Italian, Portuguese.
_FOREIGN: Final = frozenset(
    re.findall(
        r"\S+",
        """der die das den dem des ein eine einen einem einer eines und oder aber wenn dann als von im in am an auf zu
        zum zur fur mit uber aus bei nach vor zwischen wahrend ist sind war waren sein wird werden wurde
        wurden hat haben hatte hatten nicht kein keine auch nur noch schon sehr so wie was wer wo wann warum
        welche welcher welches es er sie ihr ihre ihren ihm ihn wir uns unser ich mir mich mein du dir dich
        dein dass dieser diese dieses sich man el la los las un una unos unas y o u pero si de del al en con
        por para sin sobre entre desde hasta es son era eran fue fueron ser estar esta estan ha han habia no
        se su sus le les lo me mi te tu que cual cuales quien donde cuando como mas muy tambien ya este
        estos estas ese esa le les une des du et ou mais dans sur pour par avec sans sous est sont etait
        etaient etre ete a ont avait ne pas plus tres aussi ce cet cette ces il elle ils elles on nous vous
        je tu son sa ses leur leurs qui quoi dont ou il lo gli uno dei delle degli della dello nel nella per
        tra fra che chi cui sono stato stata essere ha hanno non o os um uma e ou mas do da dos das no na
        nos nas ao com por foi foram sao ser tem nao se seu sua que""",
    )
)
_FUNCTION_WORDS: Final = _ENGLISH | _FOREIGN


class Word(NamedTuple):
    """A word as it stands (folded, case kept) and its place in the folded text."""

    text: str
    start: int


def words(text: str) -> list[Word]:
    """All words of a text in order."""
    return [Word(match.group(), match.start()) for match in _WORD.finditer(fold(text).text)]


def stem(word: str) -> str:
    """The word in lower case, without a genitive, cut to `STEM_CHARS`; numbers stay whole."""
    low = word.lower().split("'")[0].split("’")[0]
    return low if low[:1].isdigit() else low[:STEM_CHARS].removesuffix("s") if len(low) > 3 else low


def content_stems(found: Iterable[Word]) -> list[str]:
    """The stems of words that say something, in order."""
    return [stem(word.text) for word in found if word.text.lower() not in _FUNCTION_WORDS]


def english_share(found: Iterable[Word]) -> float:
    """How much of the function words of a text are English ones, 0..1; 1 for a text without any in Latin letters."""
    english = foreign = other = 0
    for word in found:
        low = word.text.lower()
        english += low in _ENGLISH and low not in _FOREIGN  # "in" and "was" say nothing
        foreign += low in _FOREIGN and low not in _ENGLISH
        other += not low.isascii()  # folded Latin letters are ASCII, so this is another script
    total = english + foreign + other
    return english / total if total else 1.0


def numbers(text: str) -> Iterator[re.Match[str]]:
    """The numbers in a text, with thousands separators and decimals as they stand."""
    return _NUMBER.finditer(text)


def names(text: str) -> Iterator[re.Match[str]]:
    """Words that look like a name: a capital letter, not at a sentence's start, no function word."""
    for match in _WORD.finditer(text):
        word = match.group()
        before = text[max(0, match.start() - 4) : match.start()].rstrip()
        starts = not before or before[-1] in ".!?:;\"“”'‘(\n-•*"
        if word[0].isupper() and len(word) > 1 and not starts and fold(word).text.lower() not in _FUNCTION_WORDS:
            yield match


def function_share(found: Iterable[Word]) -> float:
    """How many of the words are function words of English, German, Spanish, French, Italian or Portuguese, 0..1."""
    hits = [word.text.lower() in _FUNCTION_WORDS for word in found]
    return sum(hits) / len(hits) if hits else 0.0
