"""The sidecar over HTTP: what is wrong with a request, what it says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import orjson
import pytest
import structlog

from streams.gateway.app import make_app
from streams.gateway.sidecar import Sidecar
from tests.gateway_rig import ASK, MemoryPublisher, MemoryStore, rig, settings


def body(**changes: Any) -> bytes:
    return orjson.dumps({**ASK, **changes})


BAD = {
    "no json": (b'{"stage": ', 400, "bad-json"),
    "empty": (b"", 400, "bad-json"),
    "not utf-8": (b'{"stage": "request", "x": "\xff"}', 400, "bad-json"),
    "lone surrogate": (b'{"stage": "request", "x": "\\ud800"}', 400, "bad-json"),
    "too deep": (b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "bad-json"),
    "far too deep": (b"[" * 100_000, 400, "bad-json"),
    "nan": (b'{"stage": "request", "x": NaN}', 400, "bad-json"),
    "an array": (b"[]", 422, "invalid-event"),
    "no stage": (b'{"messages": []}', 422, "invalid-event"),
    "unknown stage": (body(stage="later"), 422, "invalid-event"),
    "stage is a list": (body(stage=["request"]), 422, "invalid-event"),
    "schema of the other stage": (body(schema="tidegate.response.v1"), 422, "invalid-event"),
    "no messages": (b'{"stage": "request"}', 422, "invalid-event"),
    "messages is a text": (body(messages="hi"), 422, "invalid-event"),
    "message without role": (body(messages=[{"content": "hi"}]), 422, "invalid-event"),
    "content is a number": (body(messages=[{"role": "user", "content": 7}]), 422, "invalid-event"),
    "nul": (body(messages=[{"role": "user", "content": "a\x00b"}]), 422, "invalid-event"),
    "id too long": (body(exchange_id="x" * 300), 422, "invalid-event"),
    "id is null": (body(exchange_id=None), 422, "invalid-event"),
    "time without zone": (body(time="2026-01-01T00:00:00"), 422, "invalid-event"),
    "too large": (body(x="a" * 5_000), 413, "too-large"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_a_problem_and_the_next_good_one_is_served(name: str) -> None:
    raw, status, code = BAD[name]
    async with rig(max_body_bytes=4_096 if name == "too large" else 1_048_576) as r:
        reply = await r.client.post("/v1/guard", content=raw, headers={"content-type": "application/json"})
        problem = reply.json()
        assert (reply.status_code, problem["code"], problem["status"]) == (status, code, status)
        assert reply.headers["content-type"] == "application/problem+json"
        assert problem["type"] == f"/docs#problem-{code}"
        assert problem["title"]
        assert (await r.ask(ASK)).json()["decision"] == "allow"
        await r.settled()
        assert len(r.publisher.values("llm.requests")) == 1


async def test_a_problem_names_the_field_and_never_the_value() -> None:
    async with rig() as r:
        reply = await r.ask(
            {**ASK, "messages": [{"role": "user", "content": "x"}, {"role": 4111_1111, "content": "y"}]}
        )
        assert reply.json()["field"] == "messages[1].role"
        assert "4111" not in reply.text
        reply = await r.ask({**ASK, "messages": [{"content": "my secret"}]})
        assert reply.json()["field"] == "messages[0].role"
        assert "secret" not in reply.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({"content-type": "application/vnd.acme+json"}, 200),
        ({}, 200),
        ({"x-tidegate-deadline-ms": "soon"}, 400),
        ({"x-tidegate-deadline-ms": "-5"}, 400),
        ({"x-tidegate-deadline-ms": "nan"}, 400),
        ({"x-tidegate-deadline-ms": "99999"}, 200),
    ],
)
async def test_headers(headers: dict[str, str], status: int) -> None:
    async with rig() as r:
        assert (await r.client.post("/v1/guard", content=body(), headers=headers)).status_code == status


async def test_size_is_counted_while_reading() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b" " * 1_000
            sent.append(1)

    sent: list[int] = []
    async with rig(max_body_bytes=4_096) as r:
        reply = await r.client.post("/v1/guard", content=chunks())  # chunked: no Content-Length
        assert reply.status_code == 413
        lying = await r.client.post("/v1/guard", content=b" " * 9_000, headers={"content-length": "10"})
        assert lying.status_code == 413


async def test_a_body_that_never_arrives_times_out() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async with rig(deadline_ms=100) as r:
        assert (await r.client.post("/v1/guard", content=chunks())).status_code == 408


async def test_unknown_paths_and_methods() -> None:
    async with rig() as r:
        assert (await r.client.get("/v1/guards")).json()["code"] == "not-found"
        assert (await r.client.post("/v1/guard/", json=ASK)).status_code == 404
        reply = await r.client.get("/v1/guard")
        assert (reply.status_code, reply.json()["code"], reply.headers["allow"]) == (405, "method-not-allowed", "POST")


async def test_not_ready_before_the_models_are_there() -> None:
    sidecar = Sidecar(settings(), structlog.get_logger(), store=MemoryStore(), publisher=MemoryPublisher())  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(sidecar)), base_url="http://s") as client:
        reply = await client.post("/v1/guard", json=ASK)
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "not-ready", "1")
        ready = await client.get("/ready")
        assert ready.status_code == 503
        assert "models are being loaded" in ready.json()["checks"]["guards"]
        assert (await client.get("/live")).status_code == 200
        info = (await client.get("/v1/info")).json()
        assert info["policy"] is None


# ---------------------------------------------------------------- policy and the rest


async def test_a_fault_of_ours_is_a_problem_and_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as r:

        async def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("my secret")

        monkeypatch.setattr(r.sidecar.checker, "check", broken)
        with structlog.testing.capture_logs() as logs:
            reply = await r.ask(ASK)
        assert (reply.status_code, reply.json()["code"]) == (500, "internal")
        assert "secret" not in reply.text + str(logs)
        assert logs[0]["error"] == "RuntimeError"


async def test_security_headers_and_metrics() -> None:
    async with rig() as r:
        reply = await r.ask(ASK)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"].startswith("default-src 'none'")
        text = (await r.client.get("/metrics")).text
        assert 'tidegate_http_requests_total{route="/v1/guard",status="200"}' in text
        await r.client.get("/made/up/path")
        assert "made/up" not in (await r.client.get("/metrics")).text


async def test_the_openapi_document_describes_what_is_served() -> None:
    async with rig() as r:
        document = (await r.client.get("/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        references = set(_references(document))
        assert {ref.rsplit("/", 1)[-1] for ref in references} <= set(document["components"]["schemas"])
        guard = document["components"]["schemas"]["GuardRequest"]
        assert "exchange_id" not in guard["required"]
        assert {"stage", "messages"} <= set(guard["required"])
        for path in document["paths"]:
            assert (await r.client.options(path)).status_code == 405
        example = document["paths"]["/v1/guard"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert (await r.ask(example)).status_code == 200


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_the_api_page_needs_nothing_from_elsewhere(path: str) -> None:
    async with rig() as r:
        reply = await r.client.get(path)
        assert reply.headers["content-type"].startswith("text/html")
        policy = reply.headers["content-security-policy"]
        nonce = policy.split("'nonce-")[1].split("'")[0]
        assert f'<style nonce="{nonce}">' in reply.text
        assert "<script" not in reply.text
        assert "src=" not in reply.text
        assert "curl -s http://127.0.0.1:8088/v1/guard" in reply.text
        assert 'id="problem-too-large"' in reply.text
