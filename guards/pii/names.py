"""Persons, places and the like: the shared entity model's word, without its commonest mistakes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from guards.artifacts import Entity
from guards.folding import fold
from guards.pii.found import Found, Kind
from guards.pii.gazetteer import COMMON_WORDS, first_names
from guards.pii.script import CAPITALS
from guards.words import english_share, words

__all__ = ["NAME_KINDS", "SCORE", "is_foreign", "may_name", "names", "person_score", "with_title"]

SCORE: Final = 0.85  # Presidio's for what spaCy finds
LOWER_CASE_SCORE: Final = 0.6  # two words and more: mostly names; one word of lower-case letters mostly is none

# The model reads English. In another language it takes capitalised words for persons and organisations, mostly wrongly.
ENGLISH_SHARE: Final = 0.5  # of the function words
FOREIGN_SCORE: Final = 0.4  # without a first name in it

MAX_WORDS: Final = 5  # longer "persons" are lists and headings

_KINDS: Final[Mapping[str, Kind]] = {
    "PERSON": "PERSON",
    "GPE": "LOCATION",
    "LOC": "LOCATION",
    "FAC": "LOCATION",
    "ORG": "ORGANIZATION",
    "NORP": "NRP",
    "DATE": "DATE_TIME",
    "TIME": "DATE_TIME",
}
"""spaCy's labels (OntoNotes) → Presidio's kinds."""

NAME_KINDS: Final = frozenset(_KINDS.values())

_GREETINGS: Final = r"miss|sir|madam|dear|hi|hello|hey|thanks|sincerely|regards|name|nombre"
_LEADING: Final = re.compile(rf"(?:[\s\"'“”‘’`(*_–—-]+|(?:{_GREETINGS})\b[.,:]*\s+)+", re.IGNORECASE)
_TRAILING: Final = re.compile(
    r"(?:['’`]s|\s(?:[Ss]uite|[Aa]pt|N[º°o]\w*|Correo|E-?mail|Hospital)(?!\w)|[\s.,;:!?\"“”'’`()*_–—-])+$"
)
_FORBIDDEN: Final = re.compile(r"[@\d<>{}\[\]|=/\\_#*%$^~;:]")
_LETTER: Final = re.compile(r"[A-Za-z\u00c0-\u024f\u0370-\u052f\u1e00-\u1eff]")
_CAPITAL: Final = re.compile(rf"[{CAPITALS}]")

# A title tells sex and profession: it is a part of what names the person.
_TITLE_BEFORE: Final = re.compile(
    r"(?<!\w)(?:mr|mrs|ms|miss|mx|dr|dra|prof|sr|sra|srta|señor|señora|herr|frau|monsieur|madame|mme|mlle|doña|dña|don)"
    r"\.? {1,2}$",
    re.IGNORECASE,
)
_TITLE_CHARS: Final = 12
_TITLE_AFTER: Final = re.compile(
    r",? (?:Ph\.?D|M\.?D|D\.?D\.?S|D\.?V\.?M|Esq|Jr|Sr|II|III|IV|MBA|CPA|RN)\b\.?", re.IGNORECASE
)

# What en_core_web_sm likes to call a person: products and models wherever they stand in a name, …
_PRODUCTS: Final = frozenset(
    """
    ai api android anthropic aws azure bing bitcoin chatbot chatgpt copilot css csv docker ethereum excel
    facebook github gitlab google gpt hadoop html huggingface instagram java javascript jenkins jira json
    jupyter kafka kubernetes langchain linkedin linux llama llm matlab mistral mixtral mongodb mysql netflix
    nginx numpy openai pandas paypal photoshop php postgres postgresql powerpoint powershell python pytorch qwen
    react redis reddit rust salesforce slack snapchat spotify sql tensorflow terraform tiktok twitter typescript
    ubuntu unix venmo vim whatsapp wikipedia wordpress xbox xml yaml youtube zoom
    street avenue road boulevard iban ssn
    """.split()  # noqa: SIM905 - a list of sixty literals is a page
)

# … and words that are no name when they stand alone.
_WORDS: Final = frozenset(
    """
    alexa assistant bard bert bonjour bible bye calculus cheers christmas claude congrats cortana covid dear
    easter echo falcon gemini goodbye god greetings grok haiku halloween hello hey hi hmm hola howdy jesus
    lambda lol lord math medicaid medicare ok okay oops opus oracle outlook perplexity please quran ruby santa
    satan siri sonnet sorry swift tableau telegram thanks thanksgiving thx torah ty walmart windows wow yeah yep
    yes yo
    """.split()  # noqa: SIM905 - a list of sixty literals is a page
)


def may_name(text: str) -> bool:
    """Whether the entity model, which reads English, can find a name: there are letters."""
    return _LETTER.search(text) is not None


def is_foreign(text: str) -> bool:
    """Whether the text is in another language than English."""
    return english_share(words(text)) < ENGLISH_SHARE


def names(text: str, entities: Iterable[Entity], kinds: Collection[Kind], *, foreign: bool = False) -> Iterator[Found]:
    """The entities of these kinds, trimmed: possessives, greetings and quotation marks are no part of a name."""
    for entity in entities:
        kind = _KINDS.get(entity.label)
        if kind is None or kind not in kinds:
            continue
        # The model does not see that a line ends: `Jane Doe\nAddress` is one entity to it.
        for start, end in _lines(text, entity.start, entity.end):
            start, end = _trim(text, start, end)
            score = person_score(text[start:end]) if kind == "PERSON" else SCORE
            if foreign and (kind == "ORGANIZATION" or (kind == "PERSON" and not _has_first_name(text[start:end]))):
                score = min(score, FOREIGN_SCORE)
            if start < end and score > 0:
                yield Found(kind, start, end, score)


def _has_first_name(name: str) -> bool:
    return any(word[:1].isupper() and fold(word).text.lower() in first_names() for word in name.split())


def with_title(text: str, found: Found) -> Found:
    """The person with the title before and the degree behind."""
    start, end = found.start, found.end
    if before := _TITLE_BEFORE.search(text[max(0, start - _TITLE_CHARS) : start]):
        start -= before.end() - before.start()
    if after := _TITLE_AFTER.match(text, end):
        end = after.end()
    return found if (start, end) == (found.start, found.end) else Found(found.kind, start, end, found.score)


def _lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for line in re.finditer(r"[^\r\n]+", text[start:end]):
        yield start + line.start(), start + line.end()


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    if (lead := _LEADING.match(text, start, end)) and lead.end() < end:
        start = lead.end()
    tail = _TRAILING.search(text[start:end])
    return start, start + tail.start() if tail else end


def person_score(name: str) -> float:
    """Cheap sanity: letters, no code, no product, no greeting. 0 where it is no name."""
    if _FORBIDDEN.search(name) or not _LETTER.search(name):
        return 0.0
    parts = [word.lower().strip(".,'’") for word in name.split()]
    if len(parts) > MAX_WORDS or not _PRODUCTS.isdisjoint(parts) or _WORDS.issuperset(parts):
        return 0.0
    if len(parts) == 1:
        if parts[0] in COMMON_WORDS:
            return 0.0
        return SCORE if len(name) > 2 and _CAPITAL.match(name) and not name.isupper() else 0.0
    return SCORE if _CAPITAL.search(name) else LOWER_CASE_SCORE
