"""Language: what is allowed, what answers in another language than it was asked in, and what nobody can tell."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.errors import ConfigError
from guards.language import LanguageGuard, LanguageOptions, build
from guards.languages import CODES, language_of
from guards.models import ModelStore
from guards.policy import options_of
from guards.text import texts_of
from guards.types import Document, Exchange, Failure, FailureCode, Function, Hit, Message, Stage, ToolCall, Unit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTENCES = {
    "en": "The parcel was sent this morning and will arrive on Friday.",
    "de": "Das Paket wurde heute Morgen verschickt und kommt am Freitag an.",
    "fr": "Le colis a été expédié ce matin et arrivera vendredi.",
    "es": "El paquete se envió esta mañana y llegará el viernes.",
    "it": "Il pacco è stato spedito stamattina e arriverà venerdì.",
    "pt": "A encomenda foi enviada esta manhã e chega na sexta-feira.",
    "nl": "Het pakket is vanochtend verstuurd en komt vrijdag aan.",
    "uk": "Посилку відправили сьогодні вранці, вона прийде у п'ятницю.",
    "ru": "Посылку отправили сегодня утром, она придёт в пятницу.",
    "ja": "荷物は今朝発送され、金曜日に届きます。",
    "zh": "包裹今天早上已经寄出，星期五到达。",
    "ar": "تم إرسال الطرد هذا الصباح وسيصل يوم الجمعة.",
}


@pytest.fixture(scope="module")
def guard() -> LanguageGuard:
    return build({}, ModelStore())


def _unit(question: str, answer: str | None = None, *before: Message, **more: Any) -> Unit:
    stage: Stage = "request" if answer is None else "response"
    messages = [*before, Message("user", question)]
    response = None if answer is None else [Message("assistant", answer)]
    exchange = Exchange(messages=messages, response=response, **more)
    return Unit(texts_of(exchange, stage), exchange, stage)


def _hits(guard: LanguageGuard, unit: Unit, **options: Any) -> list[Hit]:
    (result,) = guard.check([unit], LanguageOptions(**options), None)  # type: ignore[arg-type]
    assert not isinstance(result, Failure)
    return list(result)


# ---------------------------------------------------------------- language_of


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_known(code: str) -> None:
    found, probability = language_of(SENTENCES[code])
    assert found == code
    assert probability > 0.6
    assert code in CODES


@pytest.mark.parametrize(
    "text", ["", " ", "ok", "Danke!", "12 345,67 €", "```\nfor x in range(3): print(x)\n```", "🙂" * 40]
)
def test_too_little_to_tell(text: str) -> None:
    assert language_of(text) == ("", 0.0)


def test_code_links_and_capitals_do_not_count() -> None:
    code = "```python\nimport os\nfor name in os.listdir(path):\n    print(name, file=output)\n```\n" * 20
    assert language_of(code + SENTENCES["de"])[0] == "de"
    assert language_of("https://example.com/the/terms/and/conditions/of/use " * 5 + SENTENCES["fr"])[0] == "fr"
    assert language_of(SENTENCES["es"].upper())[0] == "es"


@given(st.text(max_size=300))
def test_any_text_gets_a_code_and_a_probability(text: str) -> None:
    code, probability = language_of(text)
    assert 0.0 <= probability <= 1.0
    assert bool(code) == (probability > 0)
    assert language_of(text) == (code, probability)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("it asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert build({}, ModelStore()).name == "language"


# ---------------------------------------------------------------- allowed


def test_an_answer_in_a_language_that_is_not_allowed(guard: LanguageGuard) -> None:
    (hit,) = _hits(guard, _unit(SENTENCES["en"], SENTENCES["fr"]), allowed=("en", "de"))
    assert hit.kind == "language_not_allowed"
    assert hit.score > 0.8
    assert [(part.start, part.end) for part in hit.ranges] == [(0, len(SENTENCES["fr"]))]


def test_an_allowed_language_is_no_risk(guard: LanguageGuard) -> None:
    assert _hits(guard, _unit(SENTENCES["en"], SENTENCES["de"]), allowed=("en", "de")) == [
        Hit("language_not_allowed", 0.0)
    ]


def test_of_a_request_only_the_last_message_of_the_user_counts(guard: LanguageGuard) -> None:
    before = (
        Message("system", SENTENCES["de"]),
        Message("user", SENTENCES["fr"]),
        Message("assistant", SENTENCES["es"]),
    )
    documents = [Document(SENTENCES["it"])]
    (hit,) = _hits(guard, _unit(SENTENCES["en"], None, *before, documents=documents), allowed=("en",))
    assert hit.score == 0.0
    (hit,) = _hits(guard, _unit(SENTENCES["nl"], None, *before, documents=documents), allowed=("en",))
    assert hit.score > 0.8


def test_undecidable_texts_give_no_finding(guard: LanguageGuard) -> None:
    assert _hits(guard, _unit("Ja?", "Ja."), allowed=("en",), same_as_question=True) == []


def test_without_options_nothing_is_found(guard: LanguageGuard) -> None:
    assert _hits(guard, _unit(SENTENCES["en"], SENTENCES["fr"])) == []


# ---------------------------------------------------------------- same_as_question


def test_an_answer_in_another_language_than_the_question(guard: LanguageGuard) -> None:
    (hit,) = _hits(guard, _unit("Wann kommt mein Paket bei mir an?", SENTENCES["en"]), same_as_question=True)
    assert hit.kind == "language_mismatch"
    assert hit.score > 0.5
    (hit,) = _hits(guard, _unit("Wann kommt mein Paket bei mir an?", SENTENCES["de"]), same_as_question=True)
    assert hit.score == 0.0


@pytest.mark.parametrize(
    "question",
    [
        "Please translate this: the parcel was sent this morning.",
        "How would I say that in German? I need it for a letter.",
        "Kannst du mir das bitte auf Französisch schreiben?",
        "Tradúceme esta frase, por favor, la necesito hoy.",
    ],
)
def test_who_asks_for_a_language_gets_it(guard: LanguageGuard, question: str) -> None:
    for code in ("de", "fr", "it"):
        assert _hits(guard, _unit(question, SENTENCES[code]), same_as_question=True) == []


def test_a_short_question_is_read_with_those_before(guard: LanguageGuard) -> None:
    before = (Message("user", SENTENCES["de"]), Message("assistant", SENTENCES["de"]))
    (hit,) = _hits(guard, _unit("Und?", SENTENCES["en"], *before), same_as_question=True)
    assert hit.score > 0.5


# ---------------------------------------------------------------- failures, options


def test_without_the_request_only_allowed_can_be_judged(guard: LanguageGuard) -> None:
    alone = Exchange(messages=None, response=[Message("assistant", SENTENCES["fr"])])
    unit = Unit(texts_of(alone, "response"), alone, "response")
    (hit,) = _hits(guard, unit, allowed=("en",))
    assert hit.score > 0.8
    for options in (LanguageOptions(same_as_question=True), LanguageOptions(("en",), same_as_question=True)):
        assert guard.check([unit], options, None) == [Failure(FailureCode.REQUEST_MISSING)]  # type: ignore[arg-type]


def test_too_much_is_refused(guard: LanguageGuard) -> None:
    unit = _unit("a" * 131_073)
    assert guard.check([unit], LanguageOptions(("en",)), None) == [Failure(FailureCode.INPUT_TOO_LARGE)]  # type: ignore[arg-type]


def test_tool_calls_alone_are_nothing_to_look_at(guard: LanguageGuard) -> None:
    call = Message(
        "assistant", tool_calls=[ToolCall(function=Function("send", '{"text": "Das Paket kommt am Freitag"}'))]
    )
    exchange = Exchange(messages=[Message("user", SENTENCES["en"])], response=[call])
    assert not guard.applies(Unit(texts_of(exchange, "response"), exchange, "response"), LanguageOptions())


def test_options_name_the_fault() -> None:
    options_of(LanguageOptions, {"allowed": ["en", "de"]}, "guards.language.options")
    with pytest.raises(ConfigError, match=r"guards\.language\.options.*'ger'"):
        options_of(LanguageOptions, {"allowed": ["ger"]}, "guards.language.options")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"allowed": "en"}, LanguageOptions)


# ---------------------------------------------------------------- measured


def _rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_measured_on_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the accuracy per set with ``-s``; wrong answers with confidence are what a policy suffers from."""
    sets = {
        f"xquad {code} questions": (code, [r["question"] for r in _rows(f"relevance/xquad_{code}.jsonl")])
        for code in ("en", "de", "es")
    }
    sets |= {
        f"xquad {code} sentences": (code, [r["answer_sentence"] for r in _rows(f"relevance/xquad_{code}.jsonl")])
        for code in ("en", "de", "es")
    }
    sets |= {
        f"mhc {code}": (code, [r["text"] for r in _rows(f"toxicity/mhc_{name}.jsonl")])
        for name, code in (("dutch", "nl"), ("italian", "it"), ("portuguese", "pt"))
    }
    for name, (code, texts) in sets.items():
        found = [language_of(text) for text in texts]
        told = [entry for entry in found if entry[1] >= 0.5]
        wrong = sum(found_code != code for found_code, _ in told) / len(texts)
        with capsys.disabled():
            print(f"\n{name}: {len(texts)} texts, told {len(told) / len(texts):.1%}, wrong {wrong:.2%}", end="")
        assert wrong <= 0.015
        assert len(told) >= 0.93 * len(texts)


def test_measured_on_english_traffic(guard: LanguageGuard, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "traffic" / "exchanges.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    requests: dict[str, list[Message]] = {}
    scores: dict[str, list[float]] = {"language_not_allowed": [], "language_mismatch": []}
    with gzip.open(path, "rt") as lines:
        for line in lines:
            event = json.loads(line)
            messages = [Message(message["role"], message["content"]) for message in event["messages"]]
            if "request" in event["schema"]:
                requests[event["exchange_id"]] = messages
                continue
            exchange = Exchange(messages=requests[event["exchange_id"]], response=messages)
            unit = Unit(texts_of(exchange, "response"), exchange, "response")
            if guard.applies(unit, LanguageOptions()):
                for hit in _hits(guard, unit, allowed=("en",), same_as_question=True):
                    scores[hit.kind].append(hit.score)
    for kind, found in scores.items():
        share = sum(score >= 0.8 for score in found) / len(requests)
        with capsys.disabled():
            print(f"\n{kind} at 0.8 on {len(requests)} English exchanges: {share:.2%}", end="")
        assert share <= 0.005
