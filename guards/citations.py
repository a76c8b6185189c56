"""Whether an answer's citations lead somewhere: to documents of the request, and to those that say what is claimed.

Marks are recognised by their form ([1], [1-3], 【1†source】, [^1], "(doc: kb-7)", links) and by the request's own
document ids, so that brackets that cite nothing ("[sic]", "[x]") are left alone. The sentence that carries a mark is
then held against the documents that it cites, as `guards.grounding` holds sentences against all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from guards.answers import answer_texts
from guards.artifacts import Artifacts
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.models import ModelStore
from guards.policy import options_of
from guards.sentences import Sentence, sentences
from guards.support import closest, is_claim, is_undecided, lexical_support, source, with_likeness
from guards.types import Document, Failure, FailureCode, Hit, Range, Stage, Unit
from guards.words import content_stems, words

__all__ = ["CitationsGuard", "CitationsOptions", "build"]

UNKNOWN_RISK: Final = 0.9  # nearly certain: the rest is for brackets that were no citation
RANGE_FROM: Final = 0.5  # a sentence at this risk or more is marked
MAX_COMPARED: Final = 16  # sentences that are embedded (0.3 s at most); those after it go by words alone
MAX_RANGE: Final = 50  # documents that "[1-50]" may cite

_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_MARK: Final = re.compile(
    r"【(?P<lens>[^【】\n]{1,120})】"
    r"|\[\^(?P<note>[^\[\]\s]{1,60})\]"
    r"|\[(?P<label>[^\[\]\n]{1,120})\]\((?P<link>[^()\s]{1,500})\)"
    r"|\[(?P<bracket>[^\[\]\n]{1,120})\]"
    r"|\b(?P<word>docs?|documents?|sources?|refs?|quellen?|dokumente?|fuentes?|fontes?|bron|bronnen)[ ]?[:#][ ]?"
    r"(?P<named>[^()\[\]【】\n]{1,120})",
    re.IGNORECASE,
)
_WORD: Final = re.compile(
    r"^(?:docs?|documents?|sources?|refs?|quellen?|dokumente?|fuentes?|fontes?|bron)\b\W{0,3}", re.I
)
_SEPARATOR: Final = re.compile(r"\s*[,;&]\s*|\s+(?:and|und|et|y|e|en)\s+|\s+")
_RANGE: Final = re.compile(r"(\d{1,3})\s?[-–]\s?(\d{1,3})")
# Where an answer lists its sources instead of citing them: a heading and what follows it, or "[1]: Handbook".
_LISTING: Final = re.compile(
    r"^[ \t]*(?:\[\^?[^\[\]\n]{1,60}\]:[^\n]*$"
    r"|\W{0,6}(?:sources?|references?|citations?|quellen|références|fuentes|fonti|fontes|bronnen|джерела)\b\W{0,6}\n.*\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


class CitationsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``require``: claims without a citation are a finding (`uncited`)."""

    require: bool = False


class _Mark(NamedTuple):
    """A citation: its place, the documents it cites (indexes), and whether something it cites is not there."""

    start: int
    end: int
    documents: tuple[int, ...]
    unknown: bool


class _Claim(NamedTuple):
    """A sentence that claims something: its place, whether it cites, its support, and what to compare it with."""

    text_index: int
    sentence: Sentence
    cites: bool
    support: float | None  # by the documents that it cites; nothing where it cites none that are known
    compare: str


class CitationsGuard:
    """Kinds `unknown_source`, `unsupported_citation` and, with ``require``, `uncited`: a hit of each per exchange.

    Scores: 0.9 for a source that is not there; 1 - support of the worst sentence by the documents that it cites; the
    share of claims without a citation.
    """

    name = "citations"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["exchange"] = "exchange"
    options_type = CitationsOptions

    def __init__(self, encoder_version: str) -> None:
        self.version = f"1+{encoder_version}"

    def applies(self, unit: Unit, options: CitationsOptions) -> bool:
        """False without an answer in words. A request without documents is looked at: it can be cited falsely."""
        return bool(answer_texts(unit))

    def needs(self, unit: Unit, options: CitationsOptions) -> Needs:
        """Embeddings of the citing sentences that words do not decide, and of a passage that each of them cites."""
        if unit.exchange.messages is None or _too_large(unit):
            return Needs()
        claims = _claims(unit, _marks_of(unit))
        return Needs(
            embed=tuple(text for claim in claims if claim.compare for text in (claim.sentence.text, claim.compare))
        )

    def check(self, units: Sequence[Unit], options: CitationsOptions, artifacts: Artifacts) -> list[Result]:
        """Per exchange two hits or three, or ``Failure(REQUEST_MISSING)`` where the documents are unknown."""
        return [self._check(unit, options, artifacts) for unit in units]

    def _check(self, unit: Unit, options: CitationsOptions, artifacts: Artifacts) -> Result:
        if unit.exchange.messages is None:
            return Failure(FailureCode.REQUEST_MISSING)
        if _too_large(unit):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        marks = _marks_of(unit)
        claims = _claims(unit, marks)
        unknown = [
            Range(mark.start, mark.end, index) for index, found in marks.items() for mark in found if mark.unknown
        ]
        risks = [(claim, round(1 - _support(claim, artifacts), 3)) for claim in claims if claim.support is not None]
        hits = [
            Hit("unknown_source", UNKNOWN_RISK if unknown else 0.0, tuple(unknown)),
            Hit(
                "unsupported_citation",
                max((risk for _, risk in risks), default=0.0),
                _ranges(claim for claim, risk in risks if risk >= RANGE_FROM),
            ),
        ]
        if options.require:
            uncited = [claim for claim in claims if not claim.cites] if unit.exchange.documents else []
            hits.append(Hit("uncited", round(len(uncited) / max(1, len(claims)), 3), _ranges(uncited)))
        return hits


def _ranges(claims: Iterable[_Claim]) -> tuple[Range, ...]:
    return tuple(Range(claim.sentence.start, claim.sentence.end, claim.text_index) for claim in claims)


def _support(claim: _Claim, artifacts: Artifacts) -> float:
    support = claim.support or 0.0
    if not claim.compare:
        return support
    return with_likeness(support, artifacts.embedding(claim.sentence.text), artifacts.embedding(claim.compare))


def _too_large(unit: Unit) -> bool:
    answers = (text.text for _, text in answer_texts(unit))
    documents = (document.text for document in unit.exchange.documents)
    return any(len(text) > MAX_CHARS for text in (*answers, *documents))


# ---------------------------------------------------------------- claims


def _claims(unit: Unit, marks: Mapping[int, Sequence[_Mark]]) -> list[_Claim]:
    documents = unit.exchange.documents
    claims: list[_Claim] = []
    stems_of: dict[tuple[int, ...], frozenset[str]] = {}  # of the documents that are cited together
    compared = 0
    for index, text in answer_texts(unit):
        prose = _without(text.text, marks[index])
        found = sentences(prose)
        cited = _cited(text.text, found, marks[index])
        for number, sentence in enumerate(found):
            stems = content_stems(words(sentence.text))
            if not stems or not is_claim(sentence.text, alone=len(found) == 1):
                continue
            own = cited.get(number, [])
            known = tuple(sorted({document for mark in own for document in mark.documents}))
            sources = [source(documents[document].text) for document in known if documents[document].text.strip()]
            support, compare = None, ""
            if sources:
                if known not in stems_of:
                    stems_of[known] = frozenset().union(*(made.stems for made in sources))
                support = lexical_support(stems, stems_of[known], sources)
                if is_undecided(support) and compared < MAX_COMPARED:
                    compared += 1
                    compare = closest(stems, sources)
            claims.append(_Claim(index, sentence, bool(own), support, compare))
    return claims


def _without(text: str, marks: Sequence[_Mark]) -> str:
    """The text with marks and listings blanked, places kept."""
    blank = [(mark.start, mark.end) for mark in marks] + [listing.span() for listing in _LISTING.finditer(text)]
    pieces: list[str] = []
    at = 0
    for start, end in sorted(blank):
        start = max(start, at)
        pieces += [text[at:start], re.sub(r"[^\n]", " ", text[start:end])]
        at = max(at, end)
    return "".join([*pieces, text[at:]])


def _cited(text: str, found: Sequence[Sentence], marks: Sequence[_Mark]) -> dict[int, list[_Mark]]:
    """Sentence number → its marks: a mark after the full stop belongs to the sentence that has ended, one at the start
    of a line to the sentence that begins; marks within listings belong to none."""
    listed = {place for listing in _LISTING.finditer(text) for place in range(*listing.span())}
    cited: dict[int, list[_Mark]] = {}
    number = 0
    for mark in marks:
        if mark.start in listed:
            continue
        while number < len(found) and found[number].end <= mark.start:
            number += 1
        inside = number < len(found) and found[number].start <= mark.start
        after_stop = number > 0 and "\n" not in text[found[number - 1].end : mark.start]
        owner = number if inside or not after_stop else number - 1
        if owner < len(found):
            cited.setdefault(owner, []).append(mark)
    return cited


# ---------------------------------------------------------------- marks


def _marks_of(unit: Unit) -> dict[int, list[_Mark]]:
    """Index in ``unit.texts`` → the marks of that answer, in order."""
    library = _Library(unit.exchange.documents)
    return {index: list(_marks(text.text, library)) for index, text in answer_texts(unit)}


class _Library:
    """The request's documents by id and position."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._count = len(documents)
        self._by_id: dict[str, int] = {}
        for index, document in enumerate(documents):
            if document.id.strip():
                self._by_id.setdefault(_normal(document.id), index)
        self._shapes = {_shape(name) for name in self._by_id}
        self._has_links = any(name.startswith(("http://", "https://")) for name in self._by_id)

    def find(self, token: str, *, named: bool) -> list[int | None] | None:
        """The documents (nothing: not there) that a token cites; nothing at all if it is no citation.

        ``named``: it stands after "source:" or the like, so that any word with letters and digits is meant as an id.
        """
        name = _normal(token)
        if name in self._by_id:
            return [self._by_id[name]]
        if re.fullmatch(r"\d{1,3}", name):  # a longer number in brackets is a year or an amount
            return [self._at(int(name))]
        span = _RANGE.fullmatch(name)
        if span and 0 < int(span[2]) - int(span[1]) < MAX_RANGE:
            return [self._at(position) for position in range(int(span[1]), int(span[2]) + 1)]
        looks_like_id = bool(re.search(r"\d", name)) and _shape(name) in self._shapes
        if looks_like_id or (named and re.search(r"\d", name) and re.search(r"[^\W\d_]", name)):
            return [None]
        return None

    def find_link(self, link: str) -> list[int | None] | None:
        for name in (link, link.rstrip("/").rsplit("/", 1)[-1], link.lstrip("#")):
            if _normal(name) in self._by_id:
                return [self._by_id[_normal(name)]]
        return [None] if self._has_links and link.startswith(("http://", "https://")) else None

    def named_in(self, text: str) -> list[int | None]:
        """The documents whose ids stand in a footnote's text."""
        tokens = {_normal(token) for token in re.split(r"[\s,;()]+", text)}
        return [index for name, index in self._by_id.items() if name in tokens or name == _normal(text)]

    def _at(self, position: int) -> int | None:
        return position - 1 if 1 <= position <= self._count else None


def _normal(name: str) -> str:
    return name.strip().rstrip(".:!?").casefold()


def _shape(name: str) -> str:
    """An id with all its numbers alike: what is shaped as the request's ids are is meant as one."""
    return re.sub(r"\d+", "0", name)


def _marks(text: str, library: _Library) -> Iterator[_Mark]:
    code = _CODE.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)
    notes = dict(re.findall(r"^[ \t]*\[\^([^\[\]\s]{1,60})\]:([^\n]*)$", code, re.MULTILINE))
    for match in _MARK.finditer(code):
        end = match.end()
        cited: list[int | None] | None
        if match["lens"] is not None:
            number, _, label = match["lens"].partition("†")
            cited = library.find(label, named=False) if label else None
            if cited is None or cited == [None]:
                cited = _tokens(number.partition(":")[0], library, named=False)
        elif match["note"] is not None:
            cited = library.named_in(notes[match["note"]]) if match["note"] in notes else None
            cited = cited or library.find(match["note"], named=True)
        elif match["link"] is not None:
            cited = library.find_link(match["link"])
            if cited is None or cited == [None]:
                cited = _tokens(match["label"], library, named=False) or cited
        elif match["bracket"] is not None:
            bare = _WORD.sub("", match["bracket"])
            cited = library.find(match["bracket"], named=False) or _tokens(
                bare, library, named=bare != match["bracket"]
            )
        else:
            cited, chars = _leading_tokens(match["named"], library)
            end = match.start("named") + chars
        if cited:
            documents = tuple(index for index in cited if index is not None)
            yield _Mark(match.start(), end, documents, unknown=None in cited)


def _tokens(text: str, library: _Library, *, named: bool) -> list[int | None] | None:
    """What all tokens of a bracket cite; nothing if one of them is no citation."""
    cited: list[int | None] = []
    for token in _SEPARATOR.split(re.sub(r"\s?([-–])\s?(?=\d)", r"\1", text.strip())):
        found = library.find(token, named=named)
        if found is None:
            return None
        cited.extend(found)
    return cited


def _leading_tokens(text: str, library: _Library) -> tuple[list[int | None], int]:
    """What the first tokens after "source:" cite, and how many characters they take."""
    whole = library.find(text, named=False)
    if whole and whole != [None]:
        return whole, len(text.rstrip())
    cited: list[int | None] = []
    at = chars = 0
    while at < len(text):
        separator = _SEPARATOR.search(text, at)
        token = text[at : separator.start() if separator else len(text)]
        found = library.find(token, named=True)
        if found is None:
            break
        cited.extend(found)
        chars = at + len(token.rstrip(".:!?"))
        if separator is None or token.endswith((".", "!", "?")):
            return cited, chars
        at = separator.end()
    return cited, chars


def build(options: Mapping[str, Any], models: ModelStore) -> CitationsGuard:
    """The guard, its encoder loaded. Raises `ConfigError` for an option, `ModelMissingError` without the encoder."""
    options_of(NoOptions, options, "guards.citations")
    return CitationsGuard(models.encoder().version)
