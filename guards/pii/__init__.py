"""Personal data: patterns, `phonenumbers`, addresses, names and the shared entity model, each where it can be right.

Nothing here uses the network or torch. The entity model is English; e-mail addresses, numbers and accounts are found
in any language.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import phonenumbers

from guards.artifacts import Entity
from guards.errors import ConfigError
from guards.guard import MAX_CHARS, Needs, Result
from guards.pii.addresses import addresses
from guards.pii.dates import dates
from guards.pii.found import DEFAULT_KINDS, Found, Kind, Places, joined, settle
from guards.pii.gazetteer import first_names, surnames
from guards.pii.labelled import labelled_numbers, labelled_places
from guards.pii.names import NAME_KINDS, is_foreign, may_name, names, with_title
from guards.pii.national import NATIONAL
from guards.pii.patterns import GENERAL, PatternScanner
from guards.pii.persons import beside_persons, persons
from guards.pii.phones import DEFAULT_REGIONS, PhoneScanner
from guards.pii.windows import Window, windows
from guards.policy import options_of
from guards.screening import Screen, is_sampled
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["Options", "PiiGuard", "Profile", "build"]


MIN_SCORE: Final = 0.3
"""Presidio's weakest patterns (any nine digits) stay below this without a context word: noise, not findings."""

SURE_SCORE: Final = 0.5  # from here on a number is not asked again whether it is a phone number

WINDOW_CACHE_TEXTS: Final = 128  # the texts of a batch or two

_NO_ROLES: Final = frozenset({"system", "developer", "document"})


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.pii`` in a profile. ``phone_regions``: ISO 3166 codes whose national phone formats are read."""

    phone_regions: tuple[str, ...] = DEFAULT_REGIONS


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.pii.options`` in a policy. ``kinds``: what to look for; ``documents``: look at documents as well."""

    kinds: tuple[Kind, ...] = DEFAULT_KINDS
    documents: bool = False


class PiiGuard:
    """Finds personal data in what users, tools and the model write; one hit per entity, kinds by Presidio's names.

    Scores: 1.0 where a checksum holds, 0.9 for addresses, 0.85 for names that the model sees, 0.55 to 0.7 for other
    names, 0.6 to 0.95 for well-formed numbers, 0.3 to 0.5 for what may be something else. Redaction at 0.5 is what they
    are made for. ``screen`` counts what the entity model was spared, and what that missed.
    """

    name = "pii"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "text"
    options_type: type[msgspec.Struct] = Options

    def __init__(self, profile: Profile, entity_revision: str) -> None:
        self._patterns = PatternScanner((*GENERAL, *NATIONAL))
        self._phones = PhoneScanner(profile.phone_regions)
        libraries = ("presidio-analyzer", "phonenumbers", "tldextract", "names")
        versions = [importlib.metadata.version(library) for library in libraries]
        first_names(), surnames()  # read now, not at the first text
        self.screen = Screen()
        self._windows = lru_cache(maxsize=WINDOW_CACHE_TEXTS)(windows)  # asked for twice: by `needs` and by `check`
        self.version = "+".join(["2", *versions, entity_revision, "-".join(profile.phone_regions)])

    def applies(self, unit: Unit, options: Options) -> bool:
        role = unit.texts[0].role
        return role not in _NO_ROLES or (role == "document" and options.documents)

    def needs(self, unit: Unit, options: Options) -> Needs:
        text = unit.texts[0].text
        return Needs(parse=tuple(text[part.start : part.end] for part in self._parts(text, options)))

    def _parts(self, text: str, options: Options) -> tuple[Window, ...]:
        """What the entity model reads: all of the text for places and dates, for persons what the screen leaves."""
        asked = NAME_KINDS.intersection(options.kinds)
        if len(text) > MAX_CHARS or not asked or not may_name(text):
            return ()
        if asked != {"PERSON"} or is_sampled(text):
            return (Window(0, len(text)),)
        return self._windows(text)

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """One result per unit: the entities by place, never overlapping, or ``INPUT_TOO_LARGE``."""
        return [self._check(unit.texts[0].text, options, artifacts) for unit in units]

    def _check(self, text: str, options: Options, artifacts: Artifacts) -> Result:
        if len(text) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        return [
            Hit(item.kind, round(item.score, 3), (Range(item.start, item.end),))
            for item in settle(self._find(text, options, artifacts))
            if item.score >= MIN_SCORE
        ]

    def _find(self, text: str, options: Options, artifacts: Artifacts) -> Iterator[Found]:
        kinds = options.kinds
        found = list(self._patterns.find(text, kinds))
        if "ID_NUMBER" in kinds:
            found += labelled_numbers(text)
        if "LOCATION" in kinds:
            found += labelled_places(text)
        yield from found
        if "PHONE_NUMBER" in kinds:
            taken = Places()
            for item in settle(found):
                if item.score >= SURE_SCORE:
                    taken.add(item.start, item.end)
            yield from self._phones.find(text, taken)
        yield from addresses(text, kinds)
        yield from dates(text, kinds)
        yield from self._names(text, options, artifacts)

    def _names(self, text: str, options: Options, artifacts: Artifacts) -> Iterator[Found]:
        parts = self._parts(text, options)
        entities = [
            Entity(entity.start + part.start, entity.end + part.start, entity.label)
            for part in parts
            for entity in artifacts.entities(text[part.start : part.end])
        ]
        foreign = bool(parts) and is_foreign(text)
        found = list(names(text, entities, options.kinds, foreign=foreign))
        if "PERSON" in options.kinds:
            self._count(text, options, found)
            found += persons(text, foreign=foreign)
            if not foreign:
                sure = [item for item in found if item.kind == "PERSON" and item.score >= SURE_SCORE]
                found += beside_persons(text, sure)
        yield from (item for item in found if item.kind != "PERSON")
        for item in joined(item for item in found if item.kind == "PERSON"):
            yield with_title(text, item)

    def _count(self, text: str, options: Options, found: Sequence[Found]) -> None:
        """What the screen did to this text, and on a sample, whether the model found a person where it saw none."""
        if NAME_KINDS.intersection(options.kinds) != {"PERSON"}:
            return
        parts = self._windows(text)
        if is_sampled(text):
            persons = [item for item in found if item.score >= SURE_SCORE]
            missed = any(not any(p.start <= item.start < p.end for p in parts) for item in persons)
            self.screen.add(asked=1, sampled=1, missed=int(missed))
        else:
            self.screen.add(asked=int(bool(parts)), cleared=int(not parts))


def build(options: Mapping[str, Any], models: ModelStore) -> PiiGuard:
    """The guard, its recognizers compiled and the entity model loaded. Blocks for a second or two.

    Raises `ModelMissingError` when the entity model's package is not installed, `ConfigError` for a bad option.
    """
    profile = options_of(Profile, options, "guards.pii")
    assert isinstance(profile, Profile)
    unknown = sorted(set(profile.phone_regions) - phonenumbers.SUPPORTED_REGIONS)
    if unknown:
        raise ConfigError(f"guards.pii.phone_regions: no phone numbers are known for {', '.join(unknown)}")
    models.entities()
    revision = next(model.revision for model in models.list() if model.kind == "entities")
    return PiiGuard(profile, revision)
