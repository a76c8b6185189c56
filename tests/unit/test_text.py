"""Places in messages, and redaction that keeps everything else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from guards.text import merge_redactions, redact, redact_documents
from guards.types import Location, Redaction

HERE = Location(message=0)


def test_redaction_keeps_unknown_fields_and_the_original() -> None:
    message = {"role": "user", "content": "call 555 now", "weight": 3}
    (copy,) = redact([message], [Redaction(HERE, 5, 8, "<N>")])
    assert copy == {"role": "user", "content": "call <N> now", "weight": 3}
    assert message["content"] == "call 555 now"


def test_redaction_in_parts_and_tool_calls() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "abc"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"arguments": '{"a":"abc"}'}}]},
    ]
    places = [
        Redaction(Location(message=0, part=0), 0, 3, "X"),
        Redaction(Location(message=1, tool_call=0), 6, 9, "X"),
    ]
    copies = redact(messages, places)
    assert copies[0]["content"][0]["text"] == "X"
    assert copies[1]["tool_calls"][0]["function"]["arguments"] == '{"a":"X"}'


def test_documents_are_redacted_apart() -> None:
    place = Redaction(Location(document=1), 0, 1, "X")
    assert redact_documents([{"text": "a"}, {"text": "ab", "id": "7"}], [place]) == [
        {"text": "a"},
        {"text": "Xb", "id": "7"},
    ]


ranges = st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(ranges, max_size=8))
def test_merged_redactions_are_disjoint_and_cover_the_same(found: list[tuple[int, int]]) -> None:
    merged = merge_redactions(Redaction(HERE, start, end, "<X>") for start, end in found)
    covered = {i for start, end in found for i in range(start, end)}
    assert {i for item in merged for i in range(item.start, item.end)} == covered
    assert all(one.end <= two.start for one, two in pairwise(merged))
    text = "".join(chr(0x4E00 + i) for i in range(45))
    (message,) = redact([{"role": "user", "content": text}], merged)
    assert not {text[i] for i in covered} & set(message["content"])
    assert {c for i, c in enumerate(text) if i not in covered} <= set(message["content"])
