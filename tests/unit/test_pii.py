"""The PII guard: what it finds, what it leaves, and that it stays at home."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import msgspec
import pytest

from guards.artifacts import Artifacts, Entity
from guards.errors import ConfigError
from guards.guard import Needs
from guards.masking import MAX_MASK_CHARS, replacement
from guards.models import ModelStore
from guards.pii import Options, PiiGuard, build
from guards.pii.found import Found, Kind, Places, settle
from guards.pii.names import names
from guards.types import Exchange, Failure, Text, Unit


@pytest.fixture(scope="module")
def store() -> ModelStore:
    return ModelStore()


@pytest.fixture(scope="module")
def guard(store: ModelStore) -> PiiGuard:
    return build({}, store)


@pytest.fixture(scope="module")
def artifacts(store: ModelStore) -> Artifacts:
    return Artifacts(None, store.entities)


class Silent:
    """An entity model that sees nothing: what is found is the patterns' work."""

    def parse(self, texts: Sequence[str]) -> Sequence[tuple[Entity, ...]]:
        return [() for _ in texts]


PATTERNS_ONLY = Artifacts(None, Silent)


def found(
    guard: PiiGuard, text: str, options: Options | None = None, artifacts: Artifacts = PATTERNS_ONLY, least: float = 0.5
) -> list[tuple[str, str]]:
    unit = Unit((Text(text, "user"),), Exchange(), "request")
    (result,) = guard.check([unit], options or Options(), artifacts)
    assert not isinstance(result, Failure)
    return [(hit.kind, text[hit.ranges[0].start : hit.ranges[0].end]) for hit in result if hit.score >= least]


# ---------------------------------------------------------------- what it finds


def test_card_person_phone_and_nothing_else(guard: PiiGuard, artifacts: Artifacts) -> None:
    text = "My card is 4111 1111 1111 1111, call John Smith on 212-555-0143"
    assert found(guard, text, artifacts=artifacts, least=0.0) == [
        ("CREDIT_CARD", "4111 1111 1111 1111"),
        ("PERSON", "John Smith"),
        ("PHONE_NUMBER", "212-555-0143"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail a.b+c@mail.example.com,d@e.org; <x.y@z.de>", ["a.b+c@mail.example.com", "d@e.org", "x.y@z.de"]),
        ("my IBAN is DE89 3704 0044 0532 0130 00 since May", ["DE89 3704 0044 0532 0130 00"]),
        ("iban de89370400440532013000", ["de89370400440532013000"]),
        ("from 203.0.113.7 and 2001:db8::8a2e:370:7334", ["203.0.113.7", "2001:db8::8a2e:370:7334"]),
        ("my ssn is 536-90-4399", ["536-90-4399"]),
        ("send it to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", ["1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"]),
        ("passport number 912803456", ["912803456"]),
        ("account number 123456789012", ["123456789012"]),
        ("NHS number 943 476 5919", ["943 476 5919"]),
        ("call +49 30 901820 today", ["+49 30 901820"]),
        ("ruf mich an: 030 901820", ["030 901820"]),
        ("phone (415) 555-2671 ext. 22", ["(415) 555-2671 ext. 22"]),
        ("📞 +44 20 7946 0018 📞", ["+44 20 7946 0018"]),
        ("Their phone is 782 2652", ["782 2652"]),
    ],
)
def test_patterns(guard: PiiGuard, text: str, expected: list[str]) -> None:
    assert [value for _, value in found(guard, text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "pip install package@1.2.3",
        "the card 4111 1111 1111 1112 has a wrong checksum",
        "order 912803456 was shipped",
        "on 2024-05-03 12:44 it was 1,234,567.89 dollars",
        "pages 211-227 (2003) of volume 12",
        "the total is $12345678",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "",
    ],
)
def test_what_is_no_personal_data(guard: PiiGuard, text: str) -> None:
    assert found(guard, text) == []


def test_context_words_raise_a_weak_match(guard: PiiGuard) -> None:
    assert found(guard, "order 2125550143", least=0.3) == [("PHONE_NUMBER", "2125550143")]
    assert found(guard, "order 2125550143") == []
    assert found(guard, "call me on 2125550143") == [("PHONE_NUMBER", "2125550143")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, my name is Zoë van der Berg and I moved", "Zoë van der Berg"),
        ("Name: Łucja Nowak\nAddress: 1 High Street", "Łucja Nowak"),
        ("Ask Dr. Okonkwo for it", "Okonkwo"),
        ("me llamo Ana María Pérez", "Ana María Pérez"),
    ],
)
def test_names_by_their_cue(guard: PiiGuard, text: str, expected: str) -> None:
    assert ("PERSON", expected) in found(guard, text)


# ---------------------------------------------------------------- names


def person(text: str, name: str) -> list[str]:
    start = text.index(name)
    kinds: tuple[Kind, ...] = ("PERSON",)
    items = names(text, [Entity(start, start + len(name), "PERSON")], kinds)
    return [text[item.start : item.end] for item in settle(items)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Jane Doe's", ["Jane Doe"]),
        ("Hi Jane", ["Jane"]),
        ("Mr. Smith", ["Smith"]),
        ("“Jane Doe”,", ["Jane Doe"]),
        ("Jane Doe\nAddress", ["Jane Doe", "Address"]),
        ("jane doe", ["jane doe"]),
        ("marijuana", []),
        ("ChatGPT", []),
        ("Kubernetes Ingress", []),
        ("Thanks", []),
        ("jane@example.com", []),
        ("user_name", []),
        ("R2D2", []),
        ("SQL", []),
        ("...", []),
    ],
)
def test_sanity_of_persons(name: str, expected: list[str]) -> None:
    assert person(f"x {name} x", name) == expected


def test_places_and_dates_only_where_the_policy_asks(guard: PiiGuard, artifacts: Artifacts) -> None:
    text = "We met in Berlin on 3 May 2024."
    assert found(guard, text, artifacts=artifacts) == []
    asked = Options(kinds=("LOCATION", "DATE_TIME"))
    assert [kind for kind, _ in found(guard, text, asked, artifacts)] == ["LOCATION", "DATE_TIME"]


# ---------------------------------------------------------------- options and roles


def test_a_policy_chooses_the_kinds(guard: PiiGuard) -> None:
    text = "mail a@example.com or call 212-555-0143, see https://example.com/a"
    assert found(guard, text, Options(kinds=("EMAIL_ADDRESS",))) == [("EMAIL_ADDRESS", "a@example.com")]
    assert ("URL", "https://example.com/a") in found(guard, text, Options(kinds=("URL",)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kinds": ["SHOE_SIZE"]}, Options)


def test_the_entity_model_is_asked_only_for_names(guard: PiiGuard) -> None:
    unit = Unit((Text("call John Smith", "user"),), Exchange(), "request")
    assert guard.needs(unit, Options()) == Needs(parse=("call John Smith",))
    assert guard.needs(unit, Options(kinds=("EMAIL_ADDRESS",))) == Needs()
    assert guard.needs(Unit((Text("12345 !?", "user"),), Exchange(), "request"), Options()) == Needs()


@pytest.mark.parametrize(
    ("role", "documents", "applies"),
    [
        ("user", False, True),
        ("assistant", False, True),
        ("tool", False, True),
        ("system", True, False),
        ("document", False, False),
        ("document", True, True),
    ],
)
def test_roles(guard: PiiGuard, role: str, documents: bool, applies: bool) -> None:
    unit = Unit((Text("a", role),), Exchange(), "request")
    assert guard.applies(unit, Options(documents=documents)) is applies


def test_profile_options(store: ModelStore) -> None:
    dutch = build({"phone_regions": ["NL"]}, store)
    assert found(dutch, "020 624 1111") == [("PHONE_NUMBER", "020 624 1111")]
    assert dutch.version != build({}, store).version
    with pytest.raises(ConfigError, match="XX"):
        build({"phone_regions": ["XX"]}, store)
    with pytest.raises(ConfigError, match="phone_region"):
        build({"phone_region": ["NL"]}, store)


# ---------------------------------------------------------------- no network, bounded time


def test_no_network(monkeypatch: pytest.MonkeyPatch, store: ModelStore) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the PII guard wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fresh = build({}, store)
    everything = Options(kinds=("EMAIL_ADDRESS", "URL", "PHONE_NUMBER"))
    assert len(found(fresh, "a@example.co.uk and www.example.org and b@c.invalid", everything)) >= 2


@pytest.mark.parametrize("piece", ["a@", "a!@", "a.", "123-", "1.", "::", "f:", "a@b.", "A1", "Name: A", "((1"])
def test_a_hostile_text_takes_bounded_time(guard: PiiGuard, piece: str) -> None:
    text = (piece * 65_536)[:65_536]
    began = time.perf_counter()
    found(guard, text)
    assert time.perf_counter() - began < 5.0  # some 1.5 s at worst; quadratic patterns take minutes


# ---------------------------------------------------------------- overlaps and masking


def test_of_overlapping_entities_the_surest_stays() -> None:
    card = Found("CREDIT_CARD", 5, 24, 1.0)
    assert settle([Found("PHONE_NUMBER", 10, 22, 0.6), card, Found("PERSON", 24, 30, 0.85)]) == [
        card,
        Found("PERSON", 24, 30, 0.85),
    ]


def test_places() -> None:
    places = Places()
    places.add(10, 20)
    places.add(0, 5)
    assert [places.overlap(*pair) for pair in [(5, 10), (4, 6), (19, 30), (20, 30), (0, 100)]] == [
        False,
        True,
        True,
        False,
        True,
    ]


def test_masking_operators() -> None:
    assert replacement("replace", "PERSON", "Jane Doe") == "<PERSON>"
    assert replacement("mask", "PERSON", "Jane Doe") == "********"
    assert replacement("mask", "PERSON", "x" * 100) == "*" * MAX_MASK_CHARS
    hashed = replacement("hash", "PERSON", "Jane Doe", b"key")
    assert hashed == replacement("hash", "PERSON", "Jane Doe", b"key")
    assert hashed != replacement("hash", "PERSON", "Jane Doe", b"other key")
    assert hashed.startswith("<PERSON:")
    assert "Jane" not in hashed
    assert replacement("hash", "PERSON", "\ud800", b"key")
    with pytest.raises(ValueError, match="key"):
        replacement("hash", "PERSON", "Jane Doe")
    with pytest.raises(ValueError, match="rot13"):
        replacement("rot13", "PERSON", "Jane Doe")  # type: ignore[arg-type]
