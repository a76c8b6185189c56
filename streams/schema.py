"""JSON Schemas of everything that travels over the topics, and the AsyncAPI document that ties them together.

Generated from the types, so they cannot say anything else; ``tidegate schema --check`` fails when they are stale.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from guards.policy import PolicyDocument
from streams.events import Prompt, RequestEvent, ResponseEvent
from streams.kafka import REPLY_CHANNEL_HEADER, REPLY_KEY_HEADER, RUN_HEADER
from streams.monitor.report import METRICS_SCHEMA
from streams.monitor.windows import WindowRecord
from streams.records import Alert, Amendment, DeadLetter, DecisionRecord, PolicyPointer, PolicyVersion, TopicsLife
from streams.topics import ALERTS, DECISIONS, DLQ, METRICS, POLICY, REQUESTS, RESPONSES, TOPICS, WINDOWS, Topic

__all__ = [
    "MESSAGES",
    "MetricsRecord",
    "all_documents",
    "asyncapi",
    "event_schema",
    "policy_schema",
    "tag_of",
    "write_or_check",
]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class Quantiles(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


class WindowSums(msgspec.Struct, frozen=True):
    """One horizon of one series. ``decisions``: path → stage → action → count; ``unpriced``: responses whose model has
    no known price; ``findings`` and ``blocks`` count by guard and kind, and by rule."""

    requests: int
    responses: int
    errors: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    unpriced: int
    duration_ms: Quantiles | None
    time_to_first_token_ms: Quantiles | None
    decisions: dict[str, dict[str, dict[str, int]]]
    findings: dict[str, int]
    blocks: dict[str, int]


class MetricsRecord(msgspec.Struct, frozen=True, tag_field="schema", tag=METRICS_SCHEMA):
    """``tidegate.metrics.v1``: all horizons (`1m`, `5m`, `1h`) of one series, as `metrics_record` writes it.

    Windows end at ``as_of`` (exclusive). ``run`` names a replay; live traffic has none.
    """

    as_of: str
    tenant: str
    route: str
    model: str
    prompt: Prompt
    run: str
    windows: dict[str, WindowSums]


MESSAGES: Final[Mapping[str, tuple[type[msgspec.Struct], ...]]] = {
    REQUESTS: (RequestEvent,),
    RESPONSES: (ResponseEvent,),
    DECISIONS: (DecisionRecord, Amendment),
    ALERTS: (Alert,),
    METRICS: (MetricsRecord,),
    WINDOWS: (WindowRecord,),
    POLICY: (PolicyVersion, PolicyPointer, TopicsLife),
    DLQ: (DeadLetter,),
}
"""Topic → the types of its messages."""

_RUN: Final = {"type": "string", "description": "Names the replay that this belongs to; absent from live traffic."}
_HEADERS: Final[Mapping[str, Mapping[str, Any]]] = {
    REQUESTS: {
        RUN_HEADER: _RUN,
        REPLY_KEY_HEADER: {"type": "string", "description": "Where the worker is to write its decision in the store."},
        REPLY_CHANNEL_HEADER: {"type": "string", "description": "The channel on which the worker then tells the key."},
    },
    DECISIONS: {RUN_HEADER: _RUN},
    DLQ: {RUN_HEADER: _RUN},
}

_WRITERS: Final = {REQUESTS, RESPONSES}
"""Topics that others write to; Tidegate's own processes write the rest."""


def tag_of(kind: type[msgspec.Struct]) -> str:
    """What the type's ``schema`` field says, for example ``tidegate.request.v1``."""
    return str(kind.__struct_config__.tag)


def event_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of one type. Unknown fields are allowed: readers ignore them."""
    schema = msgspec.json.schema(kind)
    name = tag_of(kind)
    body = schema["$defs"].pop(kind.__name__)
    document = {"$schema": DIALECT, "$id": f"urn:{name.replace('.', ':')}", **_clean(body), "title": name}
    return {**document, "$defs": _clean(schema["$defs"])} if schema["$defs"] else document


def _clean(schema: Any) -> Any:
    """Descriptions are docstrings: without their indentation and their marks for code."""
    if isinstance(schema, dict):
        return {
            key: inspect.cleandoc(value).replace("``", "`")
            if key == "description" and isinstance(value, str)
            else _clean(value)
            for key, value in schema.items()
        }
    return [_clean(item) for item in schema] if isinstance(schema, list) else schema


def policy_schema() -> str:
    """The JSON Schema of policy files (``configs/schema.json``)."""
    schema = _clean(PolicyDocument.model_json_schema())
    return _json({"$schema": DIALECT, "$id": "urn:tidegate:policy-file", **schema, "title": "Tidegate policy"})


def asyncapi() -> str:
    """The AsyncAPI 3.0 document (YAML): every topic with its key, headers, messages and configuration."""
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidegate topics",
            "version": "1",
            "description": (
                "Services publish requests and responses; Tidegate answers with decisions, alerts and metrics. "
                "Payloads are UTF-8 JSON. Unknown fields are kept and ignored."
            ),
        },
        "defaultContentType": "application/json",
        "channels": {_id(topic.name): _channel(topic) for topic in TOPICS},
        "operations": dict(_operation(topic) for topic in TOPICS),
        "components": {
            "messages": {tag_of(kind): _message(topic, kind) for topic in TOPICS for kind in MESSAGES[topic.name]}
        },
    }
    return "# Generated by `tidegate schema`.\n" + yaml.safe_dump(document, sort_keys=False, width=120)


def _id(topic: str) -> str:
    return topic.replace(".", "_")


def _channel(topic: Topic) -> dict[str, Any]:
    messages = {tag_of(kind): {"$ref": f"#/components/messages/{tag_of(kind)}"} for kind in MESSAGES[topic.name]}
    kafka: dict[str, Any] = {
        "topicConfiguration": {"cleanup.policy": topic.cleanup.split(","), "retention.ms": topic.retention_ms},
        "bindingVersion": "0.5.0",
    }
    if topic.partitions:
        kafka["partitions"] = topic.partitions
    return {
        "address": topic.name,
        "description": topic.what,
        "messages": messages,
        "bindings": {"kafka": kafka},
    }


def _operation(topic: Topic) -> tuple[str, dict[str, Any]]:
    """Seen from Tidegate: it receives what services write, and sends the rest."""
    action = "receive" if topic.name in _WRITERS else "send"
    channel = {"$ref": f"#/channels/{_id(topic.name)}"}
    return f"{action}_{_id(topic.name)}", {"action": action, "channel": channel, "summary": topic.what}


def _message(topic: Topic, kind: type[msgspec.Struct]) -> dict[str, Any]:
    name = tag_of(kind)
    message: dict[str, Any] = {
        "name": name,
        "summary": (kind.__doc__ or "").splitlines()[0].replace("``", ""),
        "contentType": "application/json",
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {"$ref": f"./schema/{name}.json"},
        },
        "bindings": {"kafka": {"key": {"type": "string", "description": topic.key}, "bindingVersion": "0.5.0"}},
    }
    headers = _HEADERS.get(topic.name)
    if headers:
        message["headers"] = {"type": "object", "properties": dict(headers)}
    return message


def all_documents(folder: Path) -> dict[Path, str]:
    """Path → content: a schema per type in ``folder``, and ``asyncapi.yaml`` beside the folder."""
    kinds = [kind for topic in TOPICS for kind in MESSAGES[topic.name]]
    documents = {folder / f"{tag_of(kind)}.json": _json(event_schema(kind)) for kind in kinds}
    return {**documents, folder.parent / "asyncapi.yaml": asyncapi()}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_or_check(documents: Mapping[Path, str], *, check: bool, say: Callable[[str], None]) -> bool:
    """Write what differs, or with ``check`` only say what does. True if nothing is stale (any more)."""
    stale = [path for path, text in documents.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            say(f"{path} is stale: generate it again without --check")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(documents[path], encoding="utf-8")
        say(f"wrote {path}")
    return not (check and stale)
