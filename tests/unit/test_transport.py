"""The way of slow guards to services, on real sockets of this machine: limits, addresses, and an orderly end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from guards.errors import GuardsError
from guards.outside import Budget, OutsideError, Reply
from guards.types import FailureCode
from streams.worker.transport import ANSWER_MAX_BYTES, HttpOutside, is_public

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def service(answer: Answer) -> AsyncIterator[int]:
    """A server on 127.0.0.1 that does to each connection what ``answer`` says; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def outside(spend: Any = None) -> AsyncIterator[HttpOutside]:
    made = HttpOutside(spend, structlog.get_logger())
    try:
        yield made
    finally:
        await made.close()


async def post(
    way: HttpOutside, url: str, *, timeout_s: float = 20.0, allow_private: bool = True, **headers: str
) -> Reply:
    return await asyncio.to_thread(
        way.post, url, b'{"a": 1}', headers, timeout_s=timeout_s, allow_private=allow_private
    )


async def failure(way: HttpOutside, url: str, **how: Any) -> FailureCode:
    with pytest.raises(OutsideError) as caught:
        await post(way, url, **how)
    return caught.value.code


def says(status: str, body: bytes = b"", *headers: str) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return answer


async def test_what_is_posted_arrives_and_what_is_answered_comes_back() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head + await reader.readexactly(8))
        await says("200 OK", b"[]")(_ended(), writer)

    async with outside() as way, service(answer) as port:
        reply = await post(way, f"http://localhost:{port}/check?q=1", Authorization="Bearer k")
    assert reply == Reply(200, b"[]")
    head, body = seen[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /check?q=1 HTTP/1.1\r\n")
    assert b"Authorization: Bearer k" in head
    assert b"Content-Type: application/json" in head
    assert json.loads(body) == {"a": 1}


def _ended() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(b"\r\n\r\n")
    return reader


async def test_a_redirect_is_a_reply() -> None:
    async with service(says("200 OK", b"moved")) as other:
        redirect = says("307 Temporary Redirect", b"", f"Location: http://127.0.0.1:{other}/")
        async with outside() as way, service(redirect) as port:
            assert await post(way, f"http://127.0.0.1:{port}/") == Reply(307, b"")


@pytest.mark.parametrize("after", ["nothing", "a header now and then", "a byte now and then"])
async def test_nothing_outlasts_the_time_limit(after: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if after == "a header now and then":
            writer.write(b"HTTP/1.1 200 OK\r\n")
        elif after == "a byte now and then":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await asyncio.sleep(0.02)
            if after != "nothing":
                writer.write(b"X-A: b\r\n" if after == "a header now and then" else b"x")
                await writer.drain()

    async with outside() as way, service(answer) as port, asyncio.timeout(20):
        assert await failure(way, f"http://127.0.0.1:{port}/", timeout_s=0.3) is FailureCode.TIMEOUT


async def test_an_endless_answer_is_cut() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * ANSWER_MAX_BYTES)
            await writer.drain()

    async with outside() as way, service(answer) as port:
        assert await failure(way, f"http://127.0.0.1:{port}/") is FailureCode.BAD_ANSWER


async def test_who_does_not_listen_or_speaks_otherwise_is_unreachable() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example ESMTP\r\n")

    async with outside() as way:
        async with service(answer) as port:
            assert await failure(way, f"http://127.0.0.1:{port}/") is FailureCode.UNREACHABLE
            assert await failure(way, f"https://127.0.0.1:{port}/") is FailureCode.UNREACHABLE
        assert await failure(way, f"http://127.0.0.1:{port}/") is FailureCode.UNREACHABLE


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "0", "127.1", "2130706433", "0x7f.1"]
)
async def test_a_private_address_is_not_connected_to_however_it_is_written(host: str) -> None:
    connected: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(host)
        await says("200 OK")(reader, writer)

    async with outside() as way, service(answer) as port:
        assert await failure(way, f"http://{host}:{port}/", allow_private=False) is FailureCode.UNREACHABLE
    assert not connected


async def test_a_name_is_connected_to_only_where_all_its_addresses_are_public(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append("")
        await says("200 OK")(reader, writer)

    async with outside() as way, service(answer) as port:

        async def resolve(host: str, number: int, **_: Any) -> list[Any]:
            return [(2, 1, 6, "", (address, number)) for address in ("8.8.8.8", "127.0.0.1")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        url = f"http://rebound.example:{port}/"
        assert await failure(way, url, allow_private=False) is FailureCode.UNREACHABLE
    assert not connected


# ---------------------------------------------------------------- budgets and the end


async def test_budgets_are_asked_in_the_event_loop() -> None:
    async def spend(guard: str, budget: Budget) -> bool:
        return (guard, budget) == ("judge", Budget(per_day=1))

    async with outside(spend) as way:
        assert await asyncio.to_thread(way.spend, "judge", Budget(per_day=1))
        assert not await asyncio.to_thread(way.spend, "judge", Budget(per_day=2))


async def test_the_end_wakes_who_waits_and_nobody_begins_after_it() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with outside() as way, service(answer) as port, asyncio.timeout(20):
        url = f"http://127.0.0.1:{port}/"
        waiting = [
            asyncio.create_task(post(way, url)),
            asyncio.create_task(asyncio.to_thread(way.pause, 60.0)),
        ]
        await asyncio.sleep(0.1)
        await way.close()
        assert all(isinstance(end, Exception) for end in await asyncio.gather(*waiting, return_exceptions=True))
        with pytest.raises(GuardsError):
            await post(way, url)
