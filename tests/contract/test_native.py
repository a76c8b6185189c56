"""``POST /v1/guard``, field by field, as the contract says."""

from __future__ import annotations

import re
from typing import Any

from tests.gateway_rig import ASK, POLICY, RESPONSE, rig

TEXT = "a secret here"


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {**ASK, "messages": [{"role": "user", "content": text}], **more}


async def test_allow() -> None:
    async with rig() as r:
        answer = (await r.ask(ASK)).json()
        assert set(answer) == {
            "decision", "exchange_id", "stage", "policy", "reasons", "coverage", "shadow", "timing",
        }  # fmt: skip
        assert (answer["decision"], answer["exchange_id"], answer["stage"]) == ("allow", "e1", "request")
        assert answer["policy"]["name"] == "default"
        assert re.fullmatch(r"[0-9a-f]{12}", answer["policy"]["version"])
        assert (answer["reasons"], answer["shadow"]) == ([], [])
        assert answer["coverage"] == {
            "scanned": ["pii", "toxicity", "hallucination"], "skipped": ["relevance"], "failed": [], "pending": [],
        }  # fmt: skip
        assert answer["timing"]["total_ms"] > 0
        assert set(answer["timing"]["guards"]) == {"pii", "toxicity", "hallucination"}


async def test_redact_returns_the_messages_with_unknown_fields() -> None:
    async with rig() as r:
        body = asking(TEXT, custom=1)
        body["messages"] = [{"role": "system", "content": "be kind", "x-cache": {"ttl": 5}}, *body["messages"]]
        answer = (await r.ask(body)).json()
        assert answer["decision"] == "redact"
        assert answer["messages"] == [
            {"role": "system", "content": "be kind", "x-cache": {"ttl": 5}},
            {"role": "user", "content": "a <SECRET> here"},
        ]
        assert answer["reasons"] == [
            {
                "guard": "pii",
                "kind": "SECRET",
                "rule": "redact-secret",
                "score": 0.9,
                "threshold": 0.5,
                "action": "redact",
                "spans": [{"start": 2, "end": 8, "kind": "SECRET", "message": 1}],
            }
        ]
        assert "documents" not in answer


async def test_redact_in_parts_tool_calls_and_documents() -> None:
    async with rig() as r:
        parts = [{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": "data:,"}}]
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "secret"}'}}
        answer = (
            await r.ask(
                {
                    "stage": "request",
                    "messages": [
                        {"role": "user", "content": parts},
                        {"role": "assistant", "content": None, "tool_calls": [call]},
                    ],
                    "documents": [{"id": "d", "text": "the secret", "score": 0.5}, {"text": "none"}],
                }
            )
        ).json()
        assert answer["messages"][0]["content"] == [{"type": "text", "text": "a <SECRET> here"}, parts[1]]
        assert answer["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": "<SECRET>"}'
        assert answer["documents"] == [{"id": "d", "text": "the <SECRET>", "score": 0.5}, {"text": "none"}]


async def test_offsets_are_code_points() -> None:
    async with rig() as r:
        answer = (await r.ask(asking("😀é secret"))).json()
        assert answer["reasons"][0]["spans"][0]["start"] == 3
        assert answer["messages"][0]["content"] == "😀é <SECRET>"


async def test_block_and_shadow() -> None:
    async with rig() as r:
        answer = (await r.ask(asking("a bad secret"))).json()
        assert answer["decision"] == "block"
        assert "messages" not in answer
        assert {x["rule"] for x in answer["reasons"]} == {"block-bad", "redact-secret"}
        assert [(x["rule"], x["action"]) for x in answer["shadow"]] == [("shadow-bad", "flag")]


async def test_a_shadow_policy_decides_and_is_not_enforced() -> None:
    async with rig(policy_text="shadow: true\n" + POLICY) as r:
        answer = (await r.ask(asking("a bad secret"))).json()
        assert (answer["decision"], answer["reasons"]) == ("allow", [])
        assert {x["rule"] for x in answer["shadow"]} == {"block-bad", "redact-secret", "shadow-bad"}


async def test_failed_names_guard_and_code() -> None:
    async with rig() as r:
        answer = (await r.ask(RESPONSE)).json()
        assert answer["coverage"]["failed"] == [{"guard": "relevance", "code": "request_missing"}]


async def test_a_response_has_its_own_messages() -> None:
    async with rig() as r:
        await r.ask(ASK)
        answer = (await r.ask({**RESPONSE, "messages": [{"role": "assistant", "content": "hello, secret"}]})).json()
        assert (answer["stage"], answer["decision"]) == ("response", "redact")
        assert answer["messages"] == [{"role": "assistant", "content": "hello, <SECRET>"}]


async def test_a_missing_exchange_id_is_generated_and_sorts_by_time() -> None:
    async with rig() as r:
        body = {"stage": "request", "messages": [{"role": "user", "content": "hi"}]}
        ids = [(await r.ask(body)).json()["exchange_id"] for _ in range(3)]
        assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
        assert len(set(ids)) == 3
        assert [one[:12] for one in ids] == sorted(one[:12] for one in ids)
        await r.settled()
        assert [e["exchange_id"] for e in r.publisher.values("llm.requests")] == ids
        assert all(e["time"].endswith("Z") for e in r.publisher.values("llm.requests"))


async def test_an_answer_and_its_record_say_the_same() -> None:
    async with rig() as r:
        answer = (await r.ask(asking("a bad secret", tenant="acme", user="u1", model="m"))).json()
        await r.settled()
        (record,) = r.publisher.values("llm.decisions")
        for field in ("decision", "exchange_id", "stage", "policy", "reasons", "coverage", "shadow", "timing"):
            assert record[field] == answer[field]
        assert (record["schema"], record["path"], record["tenant"]) == ("tidegate.decision.v1", "inline", "acme")
        assert record["labels"] == {"tenant": "acme", "model": "m", "user": "u1"}
        assert "secret" not in str(record).replace("redact-secret", "").replace("SECRET", "")
        assert "messages" not in record


async def test_the_schema_may_be_given_when_it_fits() -> None:
    async with rig() as r:
        assert (await r.ask({**ASK, "schema": "tidegate.request.v1"})).status_code == 200
