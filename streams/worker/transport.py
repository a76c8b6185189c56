"""The way of slow guards to services: HTTP with a limit to everything, from threads, over the worker's event loop.

httpcore rather than httpx on top of it: only there can the address that is connected to be the one that was checked.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpcore

from guards.errors import GuardsError
from guards.outside import Budget, OutsideError, Reply
from guards.types import FailureCode

__all__ = ["HttpOutside", "is_public"]

ANSWER_MAX_BYTES: Final = 262_144
"""More is no answer: the largest that a guard takes has some ten kilobytes."""

KEEPALIVE_S: Final = 15.0

T = TypeVar("T")

Spend = Callable[[str, Budget], Awaitable[bool]]

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an IP address lies in the public internet. What only leads to another address (mapped, translated,
    tunnelled) counts as what it leads to, or as private."""
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _GLOBAL_UNICAST or ip.sixtofour is not None or ip.teredo is not None:
            return False
    return ip.is_global and not ip.is_multicast


class _RefusedError(Exception):
    """An address that is not public, and that the policy does not allow."""


class _PublicOnly(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, so that a name cannot mean another one a moment later."""

    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, proto=6)  # TCP
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # One that is private makes all of them suspect: a public service has no such address.
        if not addresses or not all(map(is_public, addresses)):
            raise _RefusedError("it has an address that is not public; say allow_private: true if that is meant")
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise _RefusedError("no sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class HttpOutside:
    """`guards.outside.Outside` over HTTP. Made and closed in the running event loop, used from other threads.

    ``spend``: takes a call from a budget, in the event loop. ``log``: is told of every call that failed, by host.
    """

    def __init__(self, spend: Spend, log: Any) -> None:
        self._spend = spend
        self._log = log
        self._loop = asyncio.get_running_loop()
        context = ssl.create_default_context()
        self._pools = {
            allow_private: httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,  # the worker's concurrency bounds them
                keepalive_expiry=KEEPALIVE_S,
                network_backend=None if allow_private else _PublicOnly(),
            )
            for allow_private in (False, True)
        }
        self._calls: set[asyncio.Task[Any]] = set()
        self._closed = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether `close` was called: what guards say from then on is not what they saw."""
        return self._closed.is_set()

    async def close(self) -> None:
        """Wake every thread that waits here; it gets an exception."""
        self._closed.set()
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for pool in self._pools.values():
            await pool.aclose()

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, allow_private: bool
    ) -> Reply:
        return self._wait(self._post(url, body, headers, timeout_s, allow_private))

    def spend(self, guard: str, budget: Budget) -> bool:
        async def ask() -> bool:
            return await self._spend(guard, budget)

        return self._wait(ask())

    def pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise GuardsError("the process ends")

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self.closed:
            work.close()
            raise GuardsError("the process ends")
        try:
            return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop).result()
        except CancelledError:
            raise GuardsError("the process ends") from None

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            return await work
        finally:
            self._calls.discard(task)

    async def _post(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float, allow_private: bool
    ) -> Reply:
        sent = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "tidegate", **headers}
        try:
            # Over all of it: a service that sends a byte now and then would outlast any limit on single reads.
            async with (
                asyncio.timeout(timeout_s),
                self._pools[allow_private].stream(
                    "POST", url, headers=[(k.encode(), v.encode()) for k, v in sent.items()], content=body
                ) as response,
            ):
                answer = bytearray()
                async for chunk in response.aiter_stream():
                    answer += chunk
                    if len(answer) > ANSWER_MAX_BYTES:
                        raise self._failed(url, FailureCode.BAD_ANSWER, f"more than {ANSWER_MAX_BYTES} bytes")
        except (TimeoutError, httpcore.TimeoutException):
            raise self._failed(url, FailureCode.TIMEOUT, f"no answer in {timeout_s:.1f} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise self._failed(url, FailureCode.UNREACHABLE, type(error).__name__) from None
        except _RefusedError as error:
            raise self._failed(url, FailureCode.UNREACHABLE, str(error)) from None
        if not 200 <= response.status < 300:
            self._log.warning("a service failed", host=urlsplit(url).hostname, why=f"status {response.status}")
        return Reply(response.status, bytes(answer))

    def _failed(self, url: str, code: FailureCode, why: str) -> OutsideError:
        self._log.warning("a service failed", host=urlsplit(url).hostname, why=why)
        return OutsideError(code, why)
