"""The JSON guard: what is JSON and what is not, places of faults, and schemas that a policy may not hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.guard import Result
from guards.json_schema import MAX_CHARS, Options, build
from guards.models import ModelStore
from guards.policy import options_of
from guards.schemas import MAX_DEPTH, NotJsonError, parse, place
from guards.text import texts_of
from guards.types import Exchange, Failure, FailureCode, Message, ToolCall, Unit

GUARD = build({}, ModelStore())
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ages": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name"],
    "additionalProperties": False,
}


def unit(*messages: Message) -> Unit:
    exchange = Exchange(response=messages)
    return Unit(texts_of(exchange, "response"), exchange, "response")


def check(of: Unit, **options: Any) -> Result:
    typed = options_of(Options, options, "options")
    (result,) = GUARD.check([of], typed, Artifacts(None, None))
    return result


def faults(answer: str, **options: Any) -> list[tuple[str, list[str]]]:
    of = unit(Message("assistant", answer))
    result = check(of, **options)
    assert not isinstance(result, Failure)
    return [(hit.kind, [of.texts[part.text].text[part.start : part.end] for part in hit.ranges]) for hit in result]


@pytest.mark.parametrize("answer", ['{"a": 1}', " [1, 2]\n", '"text"', "null", "-1.5e3", '{"é🙂": "\\ud83d\\ude42"}'])
def test_json_of_any_kind_will_do_without_a_schema(answer: str) -> None:
    assert faults(answer) == []


@pytest.mark.parametrize(
    ("answer", "from_where"),
    [
        ("Sure! Here it is: {}", "Sure! Here it is: {}"),
        ('{"a": 1,}', "}"),
        ("{'a': 1}", "'a': 1}"),
        ('{"a": 1} and more', "and more"),
        ("[NaN]", "[NaN]"),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        ('["\\ud800"]', '["\\ud800"]'),
        ("[" + "1" * 5_000 + "]", "[" + "1" * 5_000 + "]"),
        ('```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```'),
    ],
)
def test_what_is_not_json_is_marked_from_where_it_is_not(answer: str, from_where: str) -> None:
    assert faults(answer) == [("not_json", [from_where])]


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ('{"name": "Ann", "ages": [1, 2]}', None),
        ('{"name": 7}', "7"),
        ('{"ages": [1, "🙂", "x"], "name": "🙂"}', '"🙂"'),
        ('{"ages": []}', '{"ages": []}'),
        (' [{"name": "Ann"}]', '[{"name": "Ann"}]'),
        ('{"name": "Ann", "extra": 1}', '{"name": "Ann", "extra": 1}'),
    ],
)
def test_what_the_schema_refuses_is_marked(answer: str, place: str | None) -> None:
    expected = [] if place is None else [("schema_violation", [place])]
    assert faults(answer, schema=PERSON) == expected
    assert faults(answer, schema=json.dumps(PERSON)) == expected


def test_json_may_stand_in_fenced_blocks() -> None:
    answer = 'Here:\n```json\n{"name": "Ann"}\n```\nand\n~~~\n{"name": 3}\n~~~\n```python\nprint()\n```\n'
    assert faults(answer, schema=PERSON, extract="fenced") == [("schema_violation", ["3"])]
    assert faults('{"name": "Ann"}', schema=PERSON, extract="fenced") == []
    assert faults("no JSON here", extract="fenced") == [("not_json", ["no JSON here"])]
    assert faults('```json\n{"name": "Ann"', extract="fenced") == [("not_json", [])]


def test_the_parts_of_an_answer_are_one_text() -> None:
    parts = [{"type": "text", "text": '{"name": '}, {"type": "text", "text": "17}"}]
    of = unit(Message("assistant", parts))
    (hit,) = check(of, schema=PERSON)  # type: ignore[misc]
    assert [(part.text, part.start, part.end) for part in hit.ranges] == [(1, 0, 2)]


def test_every_answer_is_looked_at_and_tool_calls_are_none() -> None:
    call = Message("assistant", "Let me see", tool_calls=[ToolCall()])
    assert not GUARD.applies(unit(call), Options())
    result = check(unit(call, Message("assistant", "{}"), Message("assistant", "no"), Message("assistant", None)))
    assert [hit.kind for hit in result] == ["not_json", "not_json"]  # type: ignore[union-attr]


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":['])
def test_deep_nesting_is_no_json_and_no_crash(opening: str) -> None:
    for depth in (MAX_DEPTH, 1_000, 15_000):
        assert [kind for kind, _ in faults(opening * depth)] == ["not_json"]
    assert [kind for kind, _ in faults("[" * 10_000 + "]" * 10_000, schema={"$ref": "#"})] == ["not_json"]
    assert faults("[" * MAX_DEPTH + "]" * MAX_DEPTH, schema={"items": {"$ref": "#"}}) == []


def test_an_answer_over_the_cap_is_refused() -> None:
    assert check(unit(Message("assistant", '"' + "a" * MAX_CHARS + '"'))) == Failure(FailureCode.INPUT_TOO_LARGE)


def test_patterns_of_a_schema_take_linear_time() -> None:
    assert [kind for kind, _ in faults(json.dumps("a" * 100_000 + "!"), schema={"pattern": "^(a+)+$"})] == [
        "schema_violation"
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab0é"\\', max_size=2), inner, max_size=4),
)


@given(JSON, st.sampled_from([None, 1]), st.booleans(), st.data())
def test_a_path_leads_to_its_place(value: Any, indent: int | None, ascii_only: bool, data: st.DataObject) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    path: list[str | int] = []
    inner = value
    while inner and isinstance(inner, (list, dict)) and data.draw(st.booleans()):
        step = data.draw(st.sampled_from(range(len(inner)) if isinstance(inner, list) else list(inner)))
        path.append(step)
        inner = inner[step]
    start, end = place(text, path)
    assert json.loads(text[start:end]) == inner


@given(st.text('[]{}",:\\aé1 \ud800'))
def test_parsing_ends_in_a_value_or_in_not_json(text: str) -> None:
    position = None
    try:
        parse(text)
    except NotJsonError as error:
        position = error.position
    assert position is None or 0 <= position <= len(text)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, r"options: schema: is no usable JSON Schema"),
        ({"$ref": "https://example.com/schema.json"}, "Retrieval is disabled"),
        ({"$ref": "file:///etc/hostname"}, "Retrieval is disabled"),
        ({"pattern": "(?=a)b"}, "is no usable JSON Schema"),
        ("{", "schema: is not JSON"),
        ("[]", "schema: is not a JSON object"),
    ],
)
def test_schemas_that_cannot_be_used_are_refused_with_the_policy(schema: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(Options, {"schema": schema}, "guards.json_schema.options")


def test_schemas_that_say_the_same_are_equal_options() -> None:
    options = [
        options_of(Options, {"schema": schema}, "o")
        for schema in ({"type": "object", "required": ["a"]}, '{"required": ["a"],\n "type": "object"}')
    ]
    assert options[0] == options[1]
    assert hash(options[0]) == hash(options[1])
