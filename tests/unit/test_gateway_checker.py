"""Every answer comes in time, whatever hangs; what was judged is published behind it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from guards.policy import Policy
from streams import metrics
from tests.gateway_rig import ASK, POLICY, RESPONSE, rig

# ---------------------------------------------------------------- deadlines


async def test_a_slow_guard_is_a_timeout_and_the_others_still_count() -> None:
    async with rig(before=lambda text: time.sleep(1) if "slow" in text else None, deadline_ms=300, mode="hybrid") as r:
        began = time.perf_counter()
        reply = await r.ask({**ASK, "messages": [{"role": "user", "content": "slow secret"}]})
        took_ms = (time.perf_counter() - began) * 1000
        answer = reply.json()
        assert took_ms < 300
        assert answer["coverage"]["failed"][0] == {"guard": "toxicity", "code": "timeout"}
        assert "pii" in answer["coverage"]["scanned"]
        assert answer["messages"][0]["content"] == "slow <SECRET>"


async def test_the_header_lowers_the_deadline() -> None:
    async with rig(before=lambda text: time.sleep(0.5), deadline_ms=2_000) as r:
        began = time.perf_counter()
        reply = await r.ask(ASK, x_tidegate_deadline_ms="80")
        assert (time.perf_counter() - began) * 1000 < 100
        assert {"guard": "toxicity", "code": "timeout"} in reply.json()["coverage"]["failed"]


@pytest.fixture
def hang() -> Iterator[Callable[[str], None]]:
    release = threading.Event()
    yield lambda text: None if "hang" not in text else (release.wait(60), None)[1]
    release.set()


async def test_guards_that_hang_lose_their_threads_and_the_next_ones_are_judged(hang: Callable[[str], None]) -> None:
    async with rig(before=hang, deadline_ms=150, threads=2) as r:
        for number in range(4):  # twice as many as there are threads
            began = time.perf_counter()
            reply = await r.ask({**ASK, "messages": [{"role": "user", "content": f"hang {number}"}]})
            assert (time.perf_counter() - began) * 1000 < 200
            assert {"guard": "toxicity", "code": "timeout"} in reply.json()["coverage"]["failed"]
        await asyncio.sleep(1.3)
        answer = (await r.ask({**ASK, "messages": [{"role": "user", "content": "a bad word"}]})).json()
        assert (answer["decision"], answer["coverage"]["failed"]) == ("block", [])
        assert r.sidecar.checker is not None
        assert r.sidecar.checker.threads.lost == 2


async def test_a_guard_that_was_never_reached_fails_as_its_policy_says(hang: Callable[[str], None]) -> None:
    async with rig(before=hang, deadline_ms=150, threads=1) as r:
        first = asyncio.create_task(r.ask({**ASK, "messages": [{"role": "user", "content": "hang"}]}))
        await asyncio.sleep(0.05)
        answer = (await r.ask(ASK)).json()  # waits behind it for the only thread
        assert answer["decision"] == "block"
        assert [f["guard"] for f in answer["coverage"]["failed"]] == ["pii", "toxicity", "hallucination"]
        assert ("pii", "failure:timeout") in [(x["guard"], x["kind"]) for x in answer["reasons"]]
        await first


async def test_a_guard_that_raises_or_exits_is_a_failure() -> None:
    def before(text: str) -> None:
        raise SystemExit("my secret") if "exit" in text else ValueError("my secret")

    async with rig(before=before) as r:
        answer = (await r.ask(ASK)).json()
        assert {"guard": "toxicity", "code": "error"} in answer["coverage"]["failed"]
        answer = (await r.ask({**ASK, "messages": [{"role": "user", "content": "exit"}]})).json()
        assert {"guard": "toxicity", "code": "error"} in answer["coverage"]["failed"]
        assert (await r.ask(ASK)).status_code == 200


async def test_beyond_max_inflight_it_says_so_at_once(hang: Callable[[str], None]) -> None:
    async with rig(before=hang, deadline_ms=500, max_inflight=2) as r:
        slow = [asyncio.create_task(r.ask({**ASK, "messages": [{"role": "user", "content": "hang"}]})) for _ in "ab"]
        await asyncio.sleep(0.1)
        began = time.perf_counter()
        reply = await r.ask(ASK)
        assert (time.perf_counter() - began) * 1000 < 100
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")
        assert [(await task).status_code for task in slow] == [200, 200]
        assert (await r.ask(ASK)).status_code == 200


# ---------------------------------------------------------------- store and broker


async def test_a_response_is_joined_from_memory_or_from_the_store() -> None:
    async with rig() as r:
        await r.ask(ASK)
        answer = (await r.ask(RESPONSE)).json()
        assert (answer["decision"], answer["coverage"]["failed"]) == ("allow", [])
        await r.settled()
        assert ("default", "e1") in r.store.requests
        r.sidecar.exchanges._recent.clear()
        answer = (await r.ask({**RESPONSE, "messages": [{"role": "assistant", "content": "no"}]})).json()
        assert answer["decision"] == "flag"


async def test_a_response_without_its_request_says_so() -> None:
    async with rig() as r:
        answer = (await r.ask(RESPONSE)).json()
        assert answer["coverage"]["failed"] == [{"guard": "relevance", "code": "request_missing"}]


@pytest.mark.parametrize("mode", ["down", "hangs"])
async def test_a_store_that_fails_stops_no_answer(mode: str) -> None:
    async with rig(deadline_ms=1_000) as r:
        r.store.mode = mode
        began = time.perf_counter()
        answer = (await r.ask(RESPONSE)).json()
        assert answer["coverage"]["failed"] == [{"guard": "relevance", "code": "request_missing"}]
        assert time.perf_counter() - began < 0.3
        asked = r.store.calls
        began = time.perf_counter()
        await r.ask({**RESPONSE, "exchange_id": "e2"})
        assert time.perf_counter() - began < 0.1  # it is left alone for a moment
        if mode == "down":
            await r.settled()
            assert [d["exchange_id"] for d in r.publisher.values("llm.decisions")] == ["e1", "e2"]
            assert r.store.calls == asked


async def test_what_was_judged_is_published_with_unknown_fields_kept() -> None:
    async with rig() as r:
        await r.ask({**ASK, "conversation_id": "c9", "custom": {"a": [1, None]}, "time": "2026-11-24T10:00:00.123Z"})
        await r.ask(RESPONSE)
        await r.settled()
        (request,) = r.publisher.values("llm.requests")
        assert request["custom"] == {"a": [1, None]}
        assert request["schema"] == "tidegate.request.v1"
        assert "stage" not in request
        first, second = r.publisher.values("llm.decisions")
        assert (first["path"], first["time"]) == ("inline", "2026-11-24T10:00:00.123Z")
        assert second["stage"] == "response"
        assert [r.key for r in r.publisher.records if r.topic == "llm.requests"] == [b"c9"]


async def test_the_first_decision_stands() -> None:
    async with rig(before=lambda text: time.sleep(0.2)) as r:
        await r.ask(ASK, x_tidegate_deadline_ms="60")  # toxicity fails; recorded so
        await r.settled()
        await r.ask(ASK)
        await r.settled()
        first, second = (r.value for r in r.publisher.records if r.topic == "llm.decisions")
        assert first == second


async def test_a_broker_that_is_down_delays_nothing_and_gets_everything_later() -> None:
    async with rig(publish_queue_max=1_000) as r:
        r.publisher.down = True
        for number in range(20):
            began = time.perf_counter()
            assert (await r.ask({**ASK, "exchange_id": f"e{number}"})).status_code == 200
            assert time.perf_counter() - began < 0.2
        r.publisher.down = False
        await r.settled()
        assert [e["exchange_id"] for e in r.publisher.values("llm.requests")] == [f"e{n}" for n in range(20)]
        assert len(r.publisher.values("llm.decisions")) == 20


async def test_a_full_queue_drops_and_counts() -> None:
    def dropped() -> float:
        return metrics.PUBLISH_DROPPED.labels("queue_full")._value.get()

    async with rig(publish_queue_max=4) as r:
        r.publisher.down = True
        before = dropped()
        for number in range(20):
            assert (await r.ask({**ASK, "exchange_id": f"e{number}"})).json()["decision"] == "allow"
        assert dropped() - before >= 20
        assert len(r.sidecar.outbox._drain) <= 4 + 4


async def test_hybrid_leaves_what_is_not_inline_to_the_stream() -> None:
    async with rig(mode="hybrid") as r:
        answer = (await r.ask({**ASK, "messages": [{"role": "user", "content": "a lie"}]})).json()
        assert "hallucination" in answer["coverage"]["skipped"]
        assert answer["decision"] == "allow"
    async with rig(mode="local") as r:
        answer = (await r.ask(ASK)).json()
        assert "hallucination" in answer["coverage"]["scanned"]


async def test_a_policy_that_is_refused_leaves_the_old_one() -> None:
    async with rig() as r:
        checker = r.sidecar.ready_checker()
        old = checker.policy.version
        with pytest.raises(Exception, match="secrets"):
            checker.accept(Policy.parse(POLICY.replace("guards:\n", "guards:\n  secrets: {}\n")))
        assert checker.policy.version == old
        new = Policy.parse(POLICY.replace("action: block", "action: flag"))
        checker.accept(new)
        answer = (await r.ask({**ASK, "messages": [{"role": "user", "content": "bad"}]})).json()
        assert (answer["decision"], answer["policy"]["version"]) == ("flag", new.version)
