"""The PII guard: what it finds, what it leaves, and that it stays at home."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts, Entity
from guards.errors import ConfigError
from guards.guard import Needs
from guards.models import ModelStore
from guards.pii import Options, PiiGuard, build
from guards.pii.found import Found, Kind, Places, joined, settle
from guards.pii.names import names
from guards.pii.windows import windows
from guards.screening import SAMPLE, Counts, is_sampled
from guards.types import Exchange, Failure, Text, Unit


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
        ("Ask Dr. Okonkwo for it", "Dr. Okonkwo"),
        ("me llamo Ana María Pérez", "Ana María Pérez"),
    ],
)
def test_names_by_their_cue(guard: PiiGuard, text: str, expected: str) -> None:
    assert ("PERSON", expected) in found(guard, text)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("mi DNI es 12345678Z", "ES_NIF", "12345678Z"),
        ("codice fiscale RSSMRA85T10A562S", "IT_FISCAL_CODE", "RSSMRA85T10A562S"),
        ("Mon numéro de sécurité sociale : 2 69 05 49 588 157 80", "FR_NIR", "2 69 05 49 588 157 80"),
        ("Meine Steuer-ID ist 86095742719", "DE_TAX_ID", "86095742719"),
        ("UK passport no AB1234567", "UK_PASSPORT", "AB1234567"),
        ("Patient ID: A-4471-882", "ID_NUMBER", "A-4471-882"),
        ("NHC: 739146.", "ID_NUMBER", "739146"),
    ],
)
def test_national_and_labelled_numbers(guard: PiiGuard, text: str, kind: str, value: str) -> None:
    assert (kind, value) in found(guard, text)


@pytest.mark.parametrize(
    "text",
    ["the part 12345678A has a wrong letter", "2 69 05 49 588 157 81", "item 86095742719", "patient of 1200 days"],
)
def test_a_number_without_its_checksum_or_word_is_none(guard: PiiGuard, text: str) -> None:
    assert found(guard, text) == []


# ---------------------------------------------------------------- addresses, dates of birth, ages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Ship it to 1600 Amphitheatre Parkway, Mountain View, CA 94043 today",
            "1600 Amphitheatre Parkway, Mountain View, CA 94043",
        ),
        ("I moved to 12 Elm St Apt. 4B", "12 Elm St Apt. 4B"),
        ("we are at 221B Baker Street, London NW1 6XE", "221B Baker Street, London NW1 6XE"),
        ("send it to 42 wallaby way, it is urgent: 7 kent street", "7 kent street"),
        ("Er wohnt in der Lindenstraße 12a, 10969 Berlin.", "Lindenstraße 12a, 10969 Berlin"),
        ("J'habite 10 rue de la Paix, 75002 Paris", "10 rue de la Paix, 75002 Paris"),
        ("Vive en Calle Mayor 14, 28013 Madrid", "Calle Mayor 14, 28013 Madrid"),
        ("Abita in Via Garibaldi 7", "Via Garibaldi 7"),
        ("ul. Nowa 5", "ul. Nowa 5"),
        ("P.O. Box 1221", "P.O. Box 1221"),
        ("PSC 4665, Box 2778\nAPO AE 80338", "PSC 4665, Box 2778\nAPO AE 80338"),
        ("Name: Ann\nAddress: Hof Langerud, 7\nPhone: none", "Hof Langerud, 7"),
    ],
)
def test_addresses(guard: PiiGuard, text: str, expected: str) -> None:
    assert ("STREET_ADDRESS", expected) in found(guard, text)


@pytest.mark.parametrize(
    "text",
    [
        "Wall Street fell by 300 points on 3 May 2024.",
        "It is 5 miles down the road and takes 20 minutes.",
        "Chapter 12 Road Safety",
        "a 2 way street",
        "12 Monkeys is a film",
        "Paris is the capital of France.",
    ],
)
def test_what_is_no_address(guard: PiiGuard, text: str) -> None:
    assert [item for item in found(guard, text) if item[0] in ("STREET_ADDRESS", "ZIP_CODE")] == []


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("My zip code is 94043", "ZIP_CODE", "94043"),
        ("CP: 28016", "ZIP_CODE", "28016"),
        ("I was born on 3 May 1984.", "DATE_OF_BIRTH", "3 May 1984"),
        ("DOB: 05/03/1984", "DATE_OF_BIRTH", "05/03/1984"),
        ("Fecha de nacimiento: 14/02/1938.", "DATE_OF_BIRTH", "14/02/1938"),
        ("geboren am 3. März 1984 in Bonn", "DATE_OF_BIRTH", "3. März 1984"),
        ("She is 84 years old", "AGE", "84 years old"),
        ("paciente de 76 años de edad", "AGE", "76 años de edad"),
    ],
)
def test_postcodes_births_and_ages(guard: PiiGuard, text: str, kind: Kind, value: str) -> None:
    assert found(guard, text, Options(kinds=(kind,))) == [(kind, value)]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("i spoke to david calhoun yesterday", ["david calhoun"]),
        ("my name is emily", ["emily"]),
        ("Tell Ewe, Mary and Oduya.", ["Ewe", "Mary", "Oduya"]),
        ("ask mrs. vassiliev", ["mrs. vassiliev"]),
        ("Her maiden name is Nardone", ["Nardone"]),
        ("my wife Ksenija left", ["Ksenija"]),
        ("Dr. Ana Ruiz PhD", ["Dr. Ana Ruiz PhD"]),
        ("Paciente: José Crestanello Nese NºCol: 28", ["José Crestanello Nese"]),
        ("Austin and Paris are towns, April is a month, Hope springs eternal.", []),
        ("Kelly University, Kent Street, Madison Square", []),
        ("San Jose, Los Angeles", []),
    ],
)
def test_persons_that_the_model_does_not_see(guard: PiiGuard, text: str, expected: list[str]) -> None:
    assert [value for kind, value in found(guard, text) if kind == "PERSON"] == expected


def test_in_another_language_a_capital_letter_makes_no_person(guard: PiiGuard) -> None:
    class Eager:
        def parse(self, texts: Sequence[str]) -> Sequence[tuple[Entity, ...]]:
            return [
                tuple(Entity(t.index(w), t.index(w) + len(w), "PERSON") for w in ("Los Resultados", "María Ruiz"))
                for t in texts
            ]

    text = "Los Resultados que se encuentran en la nota de María Ruiz no son los que se esperaban para el caso."
    assert found(guard, text, artifacts=Artifacts(None, Eager)) == [("PERSON", "María Ruiz")]


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
        ("“Jane Doe”,", ["Jane Doe"]),
        ("Jane Doe\nAddress", ["Jane Doe"]),
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


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Can you help me with this? I don't know what to do.", []),
        ("What is SQL? The I in API?", []),
        ("I met Zoltan.", ["I met Zoltan."]),
        ("ask emily about it", ["ask emily about it"]),
        ("JOHN SMITH CALLED", ["JOHN SMITH CALLED"]),
    ],
)
def test_the_model_reads_what_could_hold_a_name(text: str, read: list[str]) -> None:
    assert [text[part.start : part.end] for part in windows(text)] == read


def test_in_a_long_text_the_model_reads_only_the_sentences_with_a_candidate() -> None:
    dull = "This is about how things work and what you can do. " * 5
    text = f"{dull}Then Mr. Okonkwo came with Zoltan. He said hello. {dull}"
    assert [text[part.start : part.end] for part in windows(text)] == ["Then Mr. Okonkwo came with Zoltan."]


@given(st.text(st.characters(codec="utf-8"), max_size=400))
def test_windows_are_disjoint_in_order_and_hold_every_capitalised_unknown_word(text: str) -> None:
    parts = windows(text)
    assert all(0 <= part.start < part.end <= len(text) for part in parts)
    assert all(left.end <= right.start for left, right in itertools.pairwise(parts))
    marked = text.replace("Zoltan", "") + " Zoltan"
    at = len(marked) - 6
    assert any(part.start <= at and part.end == len(marked) for part in windows(marked)) or not marked[:at].strip()


def test_the_screen_counts_what_it_clears_and_what_a_sample_shows(store: ModelStore) -> None:
    class Seeing:
        def parse(self, texts: Sequence[str]) -> Sequence[tuple[Entity, ...]]:
            return [(Entity(0, 10, "PERSON"),) for _ in texts]

    guard = build({}, store)
    artifacts = Artifacts(None, Seeing)
    cleared = next(text for text in (f"quiet here number {i}" for i in range(999)) if not is_sampled(text))
    sampled = next(text for text in (f"quiet here number {i}" for i in range(999)) if is_sampled(text))
    assert found(guard, cleared, artifacts=artifacts) == []
    assert guard.screen.counts == Counts(cleared=1)
    assert found(guard, sampled, artifacts=artifacts) == [("PERSON", "quiet here")]
    assert guard.screen.counts == Counts(cleared=1, asked=1, sampled=1, missed=1)
    found(guard, "I met Zoltan there", artifacts=artifacts)
    assert guard.screen.counts.asked == 2


def test_one_text_in_64_checks_the_screen() -> None:
    share = sum(is_sampled(f"text {i}") for i in range(20_000)) / 20_000
    assert 0.5 / SAMPLE < share < 2 / SAMPLE


def test_a_batch_and_a_single_text_say_the_same(guard: PiiGuard, store: ModelStore) -> None:
    texts = [
        "Ask John Smith.",
        "Mary and Oduya met in Paris with Kofi Annan's aide.",
        "nothing",
        "call 212-555-0143",
    ] * 8
    texts = [f"{text} {'And more words. ' * (i % 7)}" for i, text in enumerate(texts)]
    units = [Unit((Text(text, "user"),), Exchange(), "request") for text in texts]
    together = Artifacts(None, store.entities)
    together.prepare([], [text for unit in units for text in guard.needs(unit, Options()).parse])
    batch = guard.check(units, Options(), together)
    assert batch == [guard.check([unit], Options(), Artifacts(None, store.entities))[0] for unit in units]


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


@pytest.mark.parametrize(
    "piece",
    [
        *("a@", "a!@", "a.", "123-", "1.", "::", "f:", "a@b.", "A1", "Name: A", "((1", "12 ", "123456789\n", "1 Aa "),
        *("Aa, ", "Mary, ", "mary john ", "address: 1 Aa ", "Suite 1\n", "Aa\n", "corner of a and ", "patient id 1A"),
    ],
)
def test_a_hostile_text_takes_bounded_time(guard: PiiGuard, piece: str) -> None:
    text = (piece * 65_536)[:65_536]
    began = time.perf_counter()
    found(guard, text)
    assert time.perf_counter() - began < 5.0  # some 1.5 s at worst; quadratic patterns take minutes


# ---------------------------------------------------------------- overlaps


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


def test_parts_of_one_name_become_one() -> None:
    parts = [Found("PERSON", 5, 9, 0.85), Found("PERSON", 0, 7, 0.6), Found("PERSON", 9, 12, 0.7)]
    assert joined(parts) == [Found("PERSON", 0, 9, 0.85), Found("PERSON", 9, 12, 0.7)]
