"""The generated schemas: current, and true to what the codec accepts and writes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import yaml

from guards.policy import configs_folder
from streams.events import RequestEvent, ResponseEvent
from streams.monitor.report import metrics_record
from streams.monitor.view import View
from streams.monitor.windows import Series, Source, WindowKey, WindowRecord, encode_key, encode_value
from streams.records import DecisionRecord
from streams.schema import MESSAGES, MetricsRecord, all_documents, event_schema, policy_schema, tag_of, write_or_check
from streams.topics import TOPICS

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_checked_in_is_current() -> None:
    said: list[str] = []
    documents = {**all_documents(ROOT / "docs" / "schema"), configs_folder() / "schema.json": policy_schema()}
    assert write_or_check(documents, check=True, say=said.append), said


def test_a_stale_file_is_told_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    said: list[str] = []
    assert not write_or_check({path: "new"}, check=True, say=said.append)
    assert path.read_text() == "old"
    assert str(path) in said[0]
    assert write_or_check({path: "new"}, check=False, say=said.append)
    assert path.read_text() == "new"


def test_every_topic_has_its_messages() -> None:
    assert set(MESSAGES) == {topic.name for topic in TOPICS}
    assert all(MESSAGES.values())


@pytest.mark.parametrize("kind", [RequestEvent, ResponseEvent])
def test_only_three_fields_of_an_event_are_required(kind: type[msgspec.Struct]) -> None:
    schema = event_schema(kind)
    assert sorted(schema["required"]) == ["exchange_id", "messages", "schema"]
    assert schema["properties"]["schema"] == {"enum": [tag_of(kind)]}


@pytest.mark.parametrize("kind", [kind for kinds in MESSAGES.values() for kind in kinds])
def test_every_reference_resolves(kind: type[msgspec.Struct]) -> None:
    schema = event_schema(kind)
    for reference in _references(schema):
        assert reference.startswith("#/$defs/")
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def _references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for item in value.values() for found in _references(item)]
    return [found for item in value for found in _references(item)] if isinstance(value, list) else []


def test_the_asyncapi_document_names_only_what_is_there() -> None:
    documents = all_documents(Path("docs/schema"))
    document = yaml.safe_load(documents[Path("docs/asyncapi.yaml")])
    assert document["asyncapi"] == "3.0.0"
    assert {channel["address"] for channel in document["channels"].values()} == {topic.name for topic in TOPICS}
    for reference in _references(document):
        if reference.startswith("#/"):
            found = document
            for part in reference[2:].split("/"):
                found = found[part]
        else:
            assert Path("docs") / reference in documents
    headers = document["components"]["messages"][tag_of(RequestEvent)]["headers"]["properties"]
    assert set(headers) == {"tidegate-run", "tidegate-reply-key", "tidegate-reply-channel"}


def test_the_schema_of_metrics_is_what_the_monitor_writes() -> None:
    view = View(bucket_ms=5_000, retention_ms=7_200_000, idle_ms=5_000)
    series = Series("acme", "support", "gpt-4o", "kb", "7")
    counters = {
        "requests": 3,
        "cost_nano_usd": 1_500,
        "decision:stream:request:block": 1,
        "finding:pii:PERSON": 2,
        "block:block-injection": 1,
    }
    key = encode_key(WindowKey(Source("llm.requests", 0), series, 1_800_000_000_000, 1))
    value = encode_value(WindowRecord(7, counters=counters, sketches={"duration_ms": {10: 3}}))
    view.apply(key, value)
    written = metrics_record(view, series, 1_800_000_005_000)
    record = msgspec.convert(written, MetricsRecord)
    assert record.windows["1m"].requests == 3
    assert record.windows["1m"].duration_ms is not None
    assert msgspec.to_builtins(record) == written


def test_no_text_field_in_what_tidegate_writes() -> None:
    """A decision record has no place where a user's text could stand."""
    text = json.dumps(event_schema(DecisionRecord))
    assert '"messages"' not in text
    assert '"content"' not in text
