"""Gibberish: mash, noise, strings of words, broken encodings, loops; and all that only looks odd."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.gibberish import GROUPS, SYMBOLS, TABLE, GibberishGuard, build
from guards.guard import NoOptions
from guards.models import ModelStore
from guards.types import Exchange, Failure, Hit, Location, Text, Unit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NOUNS = re.findall(
    r"\w+",
    """table river green quickly banana system window purple machine history running coffee mountain signal yellow
    garden number tired silver market winter paper ocean letter monkey carbon bridge planet socket ribbon engine forest
    velvet hammer danger candle ladder pepper tunnel wallet basket copper magnet puzzle rocket saddle ticket violin""",
)
PROSE = (
    "The parcel was sent this morning and will arrive on Friday, unless the snow closes the road over the pass again."
)
PHRASE = "and then the system will process the request and return the result to the user "


@pytest.fixture(scope="module")
def guard() -> GibberishGuard:
    return build({}, ModelStore())


def _hits(guard: GibberishGuard, text: str) -> dict[str, Hit]:
    (result,) = guard.check([Unit((Text(text, "user"),), Exchange(), "request")], NoOptions(), None)  # type: ignore[arg-type]
    assert not isinstance(result, Failure)
    return {hit.kind: hit for hit in result}


# ---------------------------------------------------------------- made of dice


def _mash(dice: random.Random) -> str:
    """Fingers that run over a row of keys and change the row now and then."""
    words = []
    for _ in range(dice.randint(4, 12)):
        row, at, word = dice.randrange(3), dice.randrange(7), ""
        for _ in range(dice.randint(4, 14)):
            word += KEYBOARD[row][at % len(KEYBOARD[row])]
            at += dice.choice([-3, -2, -1, 1, 2, 3])
            row = dice.randrange(3) if dice.random() < 0.12 else row
        words.append(word)
    return " ".join(words)


def _letters(dice: random.Random) -> str:
    return " ".join(
        "".join(dice.choice(string.ascii_lowercase) for _ in range(dice.randint(3, 12)))
        for _ in range(dice.randint(5, 20))
    )


def _characters(dice: random.Random) -> str:
    printable = string.ascii_letters + string.digits + string.punctuation + " " * 6
    return "".join(dice.choice(printable) for _ in range(dice.randint(60, 300)))


def _broken(dice: random.Random) -> str:
    words = ["Größe", "für", "später", "naïve", "café", "señor", "já", "coração", "l’été", "œuvre", "Straße", "über"]
    return " ".join(dice.sample(words, 6)).encode("utf-8").decode("cp1252", "replace")


def _salad(dice: random.Random) -> str:
    return " ".join(dice.choice(NOUNS) for _ in range(dice.randint(25, 60)))


def _loop(dice: random.Random) -> str:
    words = PROSE.lower().split()
    phrase = " ".join(dice.sample(words, dice.randint(2, 12)))
    return f"{PROSE} " + f"{phrase} " * dice.randint(8, 30)


KINDS: dict[str, tuple[Callable[[random.Random], str], str, float]] = {
    "keyboard mash": (_mash, "gibberish", 0.9),
    "random letters": (_letters, "gibberish", 0.9),
    "random characters": (_characters, "gibberish", 0.9),
    "broken encoding": (_broken, "gibberish", 0.9),
    "random words": (_salad, "gibberish", 0.8),
    "loops": (_loop, "repetition", 0.9),
}


@pytest.mark.parametrize("name", KINDS)
def test_measured_on_what_dice_write(guard: GibberishGuard, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, kind, least = KINDS[name]
    dice = random.Random(7)
    scores = [_hits(guard, make(dice))[kind].score for _ in range(300)]
    found = sum(score >= 0.5 for score in scores) / len(scores)
    with capsys.disabled():
        print(f"\n{name}: 300 texts, {kind} at 0.5 finds {found:.1%}", end="")
    assert found >= least


# ---------------------------------------------------------------- what only looks odd

CODE = """def f(x, y=0):
    return {k: v[i] for i, (k, v) in enumerate(x.items()) if k != y and not v.startswith("_")}

for (int i = 0; i < n; i++) { a[i] += b[j++] * c[k--]; if (!p && q->next) printf("%d\\n", x ^ 0xff); }
SELECT t.id, COUNT(*) FROM tbl t LEFT JOIN usr u ON u.id = t.uid WHERE u.nm LIKE '%x%' GROUP BY 1;
"""
ODD = {
    "prose": PROSE,
    "code": CODE,
    "fenced code": f"```\n{CODE}\n```",
    "links": "https://example.com/q?x=zxcvbnm&qwrt=%20%7B#sdfg ftp://files.example.org/~jkl/xcvb.tar.gz",
    "base64": base64.b64encode(bytes(range(256)) * 4).decode(),
    "hexadecimal": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 " * 3,
    "uuid": "3b241101-e2bb-4255-8caf-4136c566a962 and 9a3b8f6e-1c2d-4e5f-8a7b-0c1d2e3f4a5b",
    "numbers": "\n".join(f"{i * 37 % 101} {i * 53 % 97}.{i} {i * i}" for i in range(60)),
    "table": "| year | km | kg |\n| --- | --- | --- |\n"
    + "\n".join(f"| {1990 + i} | {i * 3} | {i * 7} |" for i in range(30)),
    "json": json.dumps([{"id": i, "qty": i % 7, "sku": f"XK-{i * 7919}", "ok": True} for i in range(30)]),
    "formula": r"$$\sum_{i=1}^{n} x_i^2 - \frac{a+b}{c} \le \sqrt{y^3}$$ and x^2 + 3xy - y^2 = 0",
    "acronyms": "The HTTP API of the JVM uses TLS, JWT, SQL, XML and NFKD; see RFC 7519.",
    "polish": "Szczęśliwy chrząszcz brzmi w trzcinie w Szczebrzeszynie, a źdźbło trawy drży na wietrze.",
    "czech": "Strč prst skrz krk, řekl strýc, a čtvrtek byl jako středa.",
    "welsh": "Mae'r tywydd yn braf heddiw ac rydym ni'n mynd i'r mynyddoedd gyda'r plant.",
    "finnish": "Lähetys postitettiin tänä aamuna ja se saapuu perjantaina, jos tie on auki.",
    "vietnamese": "Bưu kiện đã được gửi sáng nay và sẽ đến vào thứ Sáu.",
    "russian": "Посылку отправили сегодня утром, она придёт в пятницу.",
    "chinese": "包裹今天早上已经寄出，星期五到达。",
    "arabic": "تم إرسال الطرد هذا الصباح وسيصل يوم الجمعة.",
    "names": "Nguyen Thi Minh Khai, Zbigniew Brzeziński, Siobhán Ní Dhomhnaill, Krzysztof Kieślowski",
    "laughter": "hahahaha omg that is so funny lol :-D",
    "capitals": "PLEASE SEND THE PARCEL TO MY OFFICE AND NOT TO MY HOME",
    "list": "\n".join(f"- {thing}" for thing in NOUNS[:24]),
    "chorus": "Row, row, row your boat, down the stream. Merrily, merrily, merrily, merrily, life is a dream.",
    "accents": "Où était Noël ? À l’hôtel « CAFÉ » ; ÉTÉ – ÇA VA. Schöne Städte“, sagte er. Ñandú, não.",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_only_looks_odd(guard: GibberishGuard, name: str) -> None:
    for hit in _hits(guard, ODD[name]).values():
        assert hit.score < 0.4, hit.kind


# ---------------------------------------------------------------- behaviour


def test_one_odd_word_in_prose_is_little(guard: GibberishGuard) -> None:
    assert _hits(guard, f"My user name is xkqzvjw, and {PROSE}")["gibberish"].score < 0.2
    assert _hits(guard, "xkqzvjw qpzkwrt vbnmxz")["gibberish"].score > 0.5


def test_a_loop_is_marked(guard: GibberishGuard) -> None:
    text = f"{PROSE} {PHRASE * 20}"
    hit = _hits(guard, text)["repetition"]
    assert hit.score > 0.8
    (place,) = hit.ranges
    assert place.start >= len(PROSE) - 1
    assert place.end >= len(text) - len(PHRASE)


def test_the_longer_the_loop_the_surer(guard: GibberishGuard) -> None:
    scores = [_hits(guard, f"{PROSE} {PHRASE * times}")["repetition"].score for times in (1, 4, 8, 30)]
    assert scores == sorted(scores)
    assert scores[0] == 0.0


def test_a_loop_without_spaces(guard: GibberishGuard) -> None:
    assert _hits(guard, "ありがとうございます" * 40)["repetition"].score > 0.5
    assert _hits(guard, "lol" * 60)["repetition"].score > 0.5


@given(st.text(max_size=400))
def test_any_text_gives_both_kinds(guard: GibberishGuard, text: str) -> None:
    hits = _hits(guard, text)
    assert set(hits) == {"gibberish", "repetition"}
    for hit in hits.values():
        assert 0.0 <= hit.score <= 1.0


def test_only_what_users_and_assistants_write(guard: GibberishGuard) -> None:
    for role in ("system", "tool", "document"):
        assert not guard.applies(Unit((Text("asdf", role),), Exchange(), "request"), NoOptions())
    call = Text("asdf", "assistant", Location(message=0, tool_call=0))
    assert not guard.applies(Unit((call,), Exchange(), "response"), NoOptions())


def test_the_table_is_whole_and_small() -> None:
    assert TABLE.stat().st_size == len(GROUPS) * len(SYMBOLS) ** 3 < 200_000


# ---------------------------------------------------------------- measured


def test_measured_on_chats(guard: GibberishGuard, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "traffic" / "exchanges.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        events = [json.loads(line) for line in lines]
    texts = list(dict.fromkeys(event["messages"][-1]["content"] for event in events if event["messages"]))
    _report(guard, "chat messages", [text for text in texts if text], capsys)


@pytest.mark.parametrize("language", ["en", "de", "es"])
def test_measured_on_encyclopedia(guard: GibberishGuard, language: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "relevance" / f"xquad_{language}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = list(dict.fromkeys(row[key] for row in rows for key in ("question", "answer_sentence", "context")))
    _report(guard, f"xquad {language}", texts, capsys)


def _report(guard: GibberishGuard, name: str, texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    hits = [_hits(guard, text) for text in texts]
    for kind in ("gibberish", "repetition"):
        share = sum(found[kind].score >= 0.5 for found in hits) / len(hits)
        with capsys.disabled():
            print(f"\n{name}: {len(texts)} texts, {kind} at 0.5: {share:.2%}", end="")
        assert share <= 0.003
