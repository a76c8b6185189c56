"""Whether an answer declines: because it will not or may not help, or because it found nothing to answer with.

`guards.answers.is_refusal` tells how an answer opens, which is enough to leave an answer unjudged but says too much
here: "Unfortunately the museum is closed" declines nothing. This guard wants the sentence that declines, in the
answerer's own voice: quotations, code and the texts that an answer drafts for its user do not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import re2
import yaml

from guards.answers import is_pleasantry, is_refusal
from guards.folding import fold, without_surrogates
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.policy import options_of
from guards.sentences import Sentence, sentences
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["RefusalGuard", "build"]

FULL: Final = 0.95  # the answer declines and that is all
AND_MORE: Final = 0.7  # it declines, then goes on for more than MORE_CHARS: an offer, an explanation, half an answer
LATE: Final = 0.5  # it answers something and declines a part
DRAFTED: Final = 0.3  # after "Here is a letter:" the words are probably the letter's
PROBABLE: Final = 0.6  # a short answer that has the shape of a refusal: "I cannot …", whatever the verb
HINTED: Final = 0.2  # it opens as a refusal does, without a sentence that declines
MORE_CHARS: Final = 250  # of other sentences; a full refusal may say where to find help

# What is somebody else's voice, blanked before anything is matched; a quotation of at most a page.
_OTHER_VOICE: Final = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|^[ \t]*>[^\n]*$"
    r"|\"[^\"\n]{1,1000}\"|“[^”\n]{1,1000}”|„[^“”\n]{1,1000}[“”]|«[^»\n]{1,1000}»|»[^«\n]{1,1000}«",
    re.DOTALL | re.MULTILINE,
)


class _Signs(NamedTuple):
    """The patterns of refusal.yaml, of all languages in one."""

    will_not: Any
    not_found: Any
    probably_will_not: Any
    idioms: Any


class RefusalGuard:
    """Kinds `refusal` (will not or may not) and `no_answer` (does not know), a hit of each for every answer.

    0.95: the answer declines; 0.7: and goes on at length; 0.6: it is short and has the shape of a refusal; 0.5: it
    declines a part after answering another; 0.3: the words stand in a draft; 0.2: it only opens as refusals do; 0.0.
    """

    name = "refusal"
    version = "1"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["text"] = "text"
    options_type = NoOptions

    def __init__(self) -> None:
        self._signs = _signs()

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """False for what is no answer: another role's text, arguments of tool calls."""
        (text,) = unit.texts
        return unit.stage == "response" and text.role == "assistant" and text.location.tool_call is None

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Nothing."""
        return Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Two hits per answer."""
        return [_check(unit.texts[0].text, self._signs) for unit in units]


def _check(text: str, signs: _Signs) -> Result:
    if len(text) > MAX_CHARS:
        return Failure(FailureCode.INPUT_TOO_LARGE)
    said = sentences(_OTHER_VOICE.sub(lambda quote: " " * len(quote.group()), text))
    will_not: list[Sentence] = []
    not_found: list[Sentence] = []
    for sentence in said:
        plain = _plain(sentence.text)
        if signs.will_not.search(plain):
            will_not.append(sentence)
        elif signs.not_found.search(plain):
            not_found.append(sentence)
    hits = [_hit("refusal", will_not, said), _hit("no_answer", not_found, said)]
    if said and not will_not and not not_found:
        opening = next((sentence for sentence in said if not is_pleasantry(sentence.text)), said[0])
        place = (Range(opening.start, opening.end),)
        short = sum(len(sentence.text) for sentence in said) <= MORE_CHARS
        if short and signs.probably_will_not.search(signs.idioms.sub("", _plain(opening.text))):
            hits[0] = Hit("refusal", PROBABLE, place)
        elif is_refusal(opening.text):
            hits[0] = Hit("refusal", HINTED, place)
    return hits


def _plain(sentence: str) -> str:
    return without_surrogates(fold(sentence).text.replace("’", "'"))


def _hit(kind: str, found: Sequence[Sentence], said: Sequence[Sentence]) -> Hit:
    if not found:
        return Hit(kind, 0.0)
    first, declining = found[0], set(found)
    before = [sentence.text for sentence in said if sentence.end <= first.start]
    after = sum(len(sentence.text) for sentence in said if sentence.start >= first.end and sentence not in declining)
    if any(sentence.endswith((":", "：")) for sentence in before):
        score = DRAFTED
    elif not all(is_pleasantry(sentence) or is_refusal(sentence) for sentence in before):
        score = LATE
    else:
        score = AND_MORE if after > MORE_CHARS else FULL
    return Hit(kind, score, tuple(Range(sentence.start, sentence.end) for sentence in found))


def _signs() -> _Signs:
    languages: Any = yaml.safe_load(files("guards").joinpath("refusal.yaml").read_text(encoding="utf-8"))
    patterns: dict[str, list[str]] = {kind: [] for kind in _Signs._fields}
    for language in languages.values():
        for kind, found in patterns.items():
            found.extend(re.sub(r"<(\w+)>", lambda name: language["words"][name[1]], text) for text in language[kind])  # noqa: B023
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = 64 << 20
    return _Signs(
        *(re2.compile("|".join(fold(pattern).text for pattern in found), options) for found in patterns.values())
    )


def build(options: Mapping[str, Any], models: ModelStore) -> RefusalGuard:
    """The guard; it has no options and no model. Raises `ConfigError` for an option."""
    options_of(NoOptions, options, "guards.refusal")
    return RefusalGuard()
