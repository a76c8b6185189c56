"""Labelled files: their forms, what is told of bad rows, candidates of a ranking."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from guards.errors import ConfigError
from guards.evaluation.rows import LabelledFile, read
from guards.types import Document, Message

TEXT = {"text": "How are you?", "label": 0}
SPANS = {"text": "I am Ann.", "spans": [{"label": "PERSON", "start": 5, "end": 8}]}
ANSWER = {"context": "It opens at nine.", "question": "When?", "response": "At nine.", "label": 0}
CANDIDATES = {"question": "When?", "candidates": ["At nine.", "In May.", "At nine."], "right": 0}
PASSAGES = [
    {
        "question": f"What is {name}?",
        "context": f"{name} is one. It is old. It lies in {place}.",
        "answer_sentence": f"{name} is one.",
        "paragraph": paragraph,
    }
    for name, place, paragraph in [("Aa", "the east", "0-0"), ("Bb", "the west", "0-1"), ("Cc", "the north", "1-0")]
]


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, **options)
    return str(caught.value)


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("row", "form"),
    [(TEXT, "text"), (SPANS, "spans"), (ANSWER, "answer"), (CANDIDATES, "ranking"), (PASSAGES[0], "ranking")],
)
def test_the_fields_tell_the_form(tmp_path: Path, row: dict[str, Any], form: str) -> None:
    file = read(write(tmp_path, {**row, "language": "xx", "id": 7, "something": [1]}))
    assert (file.form, file.total, file.rows[0].language) == (form, 1, "xx")


def test_a_json_array_and_a_gzipped_file_are_read_alike(tmp_path: Path) -> None:
    lines = write(tmp_path, TEXT, "", ANSWER | {"text": "x"})
    with pytest.raises(ConfigError):
        read(lines)
    lines = write(tmp_path, TEXT, "", {**TEXT, "label": True})
    array = write(tmp_path, json.dumps([TEXT, {**TEXT, "label": True}], indent=1), name="rows.json")
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(lines.read_bytes()))
    assert read(lines).rows == read(array).rows == read(zipped).rows
    assert [row.label for row in read(zipped).rows] == [0, 1]


def test_what_a_guard_gets(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path, {**ANSWER, "reference": "At 9."})).rows
    (exchange,) = row.exchanges("response", None)
    assert exchange.messages == [Message("user", "When?")]
    assert exchange.response == [Message("assistant", "At nine.")]
    assert exchange.documents == [Document("It opens at nine.")]
    assert exchange.reference == "At 9."
    (row,) = read(write(tmp_path, TEXT)).rows
    assert row.exchanges("request", None)[0].messages == [Message("user", "How are you?")]
    assert row.exchanges("request", "document")[0].documents == [Document("How are you?")]
    assert row.exchanges("response", None)[0].response == [Message("assistant", "How are you?")]
    (row,) = read(write(tmp_path, {**TEXT, "role": "tool"})).rows
    assert row.exchanges("request", "user")[0].messages == [Message("tool", "How are you?")]


def test_fields_of_other_names_and_groups(tmp_path: Path) -> None:
    path = write(tmp_path, {"comment": "Hi", "is_toxic": 1, "kind": "a", "annotator": 3})
    (row,) = read(path, fields={"text": "comment", "label": "is_toxic"}).rows
    assert (row.text, row.label, row.group) == ("Hi", 1, "a")
    (row,) = read(path, fields={"text": "comment", "label": "is_toxic"}, group_by="annotator").rows
    assert row.group == "3"


def test_a_sample_is_the_same_for_a_seed_and_keeps_the_order(tmp_path: Path) -> None:
    path = write(tmp_path, *({"text": f"{number:03}", "label": 0} for number in range(100)))
    some = read(path, limit=10, seed=4)
    texts = [row.text for row in some.rows]
    assert (len(texts), some.total) == (10, 100)
    assert texts == sorted(texts)
    assert texts == [row.text for row in read(path, limit=10, seed=4).rows]
    assert texts != [row.text for row in read(path, limit=10, seed=5).rows]
    assert len(read(path, limit=1000).rows) == 100


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside this checkout")
@pytest.mark.parametrize(
    ("path", "form", "rows"),
    [
        ("toxicity/mhc_dutch.jsonl", "text", 3765),
        ("injection/multilingual_attacks.json", "text", 72),
        ("pii/meddocan_es_dev.jsonl", "spans", 250),
        ("groundedness/halueval_qa.jsonl", "answer", 1000),
        ("relevance/xquad_de.jsonl", "ranking", 1159),
    ],
)
def test_public_files_are_read(path: str, form: str, rows: int) -> None:
    file = read(DATA / path)
    assert (file.form, file.total) == (form, rows)
    if form == "ranking":
        assert all(pool.right for row in file.rows for pool in row.pools.values())
        assert all(list(row.pools) == ["paragraph", "article"] and len(row.pairs) == 2 for row in file.rows)


# ---------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, "missing required field `label`"),
        ({"text": "a", "label": 2}, "<= 1 - at `$.label`"),
        ({"text": "a", "label": "secret"}, "`$.label`"),
        ({"text": 7, "label": 1}, "`$.text`"),
        ({"text": "a", "label": 1, "role": "secret"}, "role: expected user, assistant"),
        ({"text": "abc", "spans": [{"start": 1, "end": 4}]}, "a span lies outside the text"),
        ({"text": "abc", "spans": [{"start": 2, "end": 2}]}, "a span lies outside the text or is empty"),
        ({"text": "abc", "spans": [{"start": -1, "end": 2}]}, "`$.spans[0].start`"),
        ({"question": "a", "candidates": ["secret"], "right": 1}, "right: expected an index from 0 to 0"),
        ({"question": "a", "candidates": [], "right": 0}, "`$.candidates`"),
        ({"question": "a", "context": "secret", "answer_sentence": "b"}, "answer_sentence: it is not in the context"),
        ({"answer": "secret"}, "expected the fields text and label"),
        ("[1]", "expected an object"),
        ('{"text": "secret', "not JSON"),
        ('{"text": "\\ud800", "label": 1}', "not JSON"),
    ],
)
def test_a_bad_row_is_told_with_its_line_and_never_with_its_value(tmp_path: Path, row: Any, said: str) -> None:
    path = write(tmp_path, TEXT, "", row)
    told = refused(path)
    assert told.startswith(f"{path}:3: ")
    assert said in told
    assert "secret" not in told


def test_rows_of_two_forms_do_not_mix(tmp_path: Path) -> None:
    assert "a row of the form spans in a file of the form text" in refused(write(tmp_path, TEXT, SPANS))


def test_many_bad_rows_are_ten_lines_and_a_count(tmp_path: Path) -> None:
    lines = refused(write(tmp_path, *[{"text": "a"}] * 25)).splitlines()
    assert len(lines) == 11
    assert lines[-1].endswith("and 15 more bad rows")


def test_a_row_of_an_array_is_told_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([TEXT, {"text": "a"}]), name="rows.json")
    assert refused(path).startswith(f"{path}: row 2: ")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("b.jsonl.gz", b"no gzip"), ("c.jsonl", b'"\xff"')])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert str(path) in refused(path)
    assert "cannot be read" in refused(tmp_path / "missing.jsonl")


# ---------------------------------------------------------------- candidates


def passages(folder: Path, **options: Any) -> LabelledFile:
    return read(write(folder, *PASSAGES), **options)


def test_candidates_are_the_sentences_of_paragraph_and_article(tmp_path: Path) -> None:
    first, _, last = passages(tmp_path).rows
    assert first.pools["paragraph"].candidates == ("Aa is one.", "It is old.", "It lies in the east.")
    assert first.pools["paragraph"].right == {0}
    # "It is old." stands in both paragraphs and is one candidate.
    assert len(first.pools["article"].candidates) == 5
    assert list(last.pools) == ["paragraph"], "an article of one paragraph says nothing new"
    fits, does_not = first.pairs
    assert fits == ("Aa is one.", 0)
    assert does_not[0] in ("Cc is one.", "It is old.", "It lies in the north.")
    assert does_not[1] == 1


def test_a_sample_keeps_the_candidates_of_the_whole_file(tmp_path: Path) -> None:
    sampled = {row.question: row.pools for row in passages(tmp_path, limit=1).rows}
    whole = {row.question: row.pools for row in passages(tmp_path).rows}
    assert sampled.items() <= whole.items()


def test_an_answer_that_is_cut_otherwise_has_its_parts(tmp_path: Path) -> None:
    row = {**PASSAGES[0], "answer_sentence": "Aa is one. It is old."}
    (found,) = read(write(tmp_path, row)).rows
    assert found.pools["paragraph"].right == {0, 1}
    (found,) = read(write(tmp_path, {**row, "answer_sentence": "the east"})).rows
    assert found.pools["paragraph"].right == {2}
    assert found.pairs == (("the east", 0),), "there is no other article to take a stranger from"


def test_equal_candidates_are_one(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path, CANDIDATES)).rows
    assert row.pools["candidates"].candidates == ("At nine.", "In May.")
    assert row.pairs == (("At nine.", 0), ("In May.", 1))
    (row,) = read(write(tmp_path, {**CANDIDATES, "right": [0, 1]})).rows
    assert row.pools["candidates"].right == {0, 1}
