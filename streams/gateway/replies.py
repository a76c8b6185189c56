"""Asking over the stream: subscribe first, publish the question, then wait for the worker's reply in the store."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from time import perf_counter
from typing import Any, Final

from redis.exceptions import RedisError

from streams import metrics
from streams.kafka import REPLY_CHANNEL_HEADER, REPLY_KEY_HEADER
from streams.store import Store, key

__all__ = ["Question", "Replies"]

LAST_LOOK_S: Final = 0.02
"""So long before the deadline the key itself is read once more: a notice can be lost, the reply is in the store."""

_RETRY_S: Final = 0.2
_POLL_S: Final = 1.0


class Question:
    """One question under way: where the worker is to reply."""

    def __init__(self, channel: str) -> None:
        self.key = key("reply", secrets.token_hex(16))
        self.headers = ((REPLY_KEY_HEADER, self.key.encode()), (REPLY_CHANNEL_HEADER, channel.encode()))
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class Replies:
    """This process's channel, subscribed for its whole life, and the questions that wait."""

    def __init__(self, store: Store, log: Any) -> None:
        self.channel = key("reply", "channel", secrets.token_hex(8))
        self.listening = False
        self._redis = store.redis
        self._log = log
        self._open: dict[bytes, Question] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    async def start(self, timeout_s: float = 10.0) -> None:
        """Returns once the store has confirmed the subscription. Raises `TimeoutError`."""
        self._task = asyncio.create_task(self._listen(), name="replies")
        async with asyncio.timeout(timeout_s):
            await self._subscribed.wait()

    async def stop(self) -> None:
        tasks = [*self._fetches, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def question(self) -> Iterator[Question]:
        """Open a question before it is published, so that no reply is too early."""
        question = Question(self.channel)
        self._open[question.key.encode()] = question
        try:
            yield question
        finally:
            del self._open[question.key.encode()]
            question.reply.cancel()

    async def wait(self, question: Question, ends_s: float) -> bytes | None:
        """The reply, or ``None`` at ``ends_s`` (`time.perf_counter` seconds)."""
        await asyncio.wait([question.reply], timeout=max(0.0, ends_s - perf_counter() - LAST_LOOK_S))
        if not question.reply.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, ends_s - perf_counter())):
                    await self._fetch(question)
        return question.reply.result() if question.reply.done() else None

    async def _fetch(self, question: Question) -> None:
        try:
            value: Any = await self._redis.get(question.key)
        except (RedisError, OSError):
            metrics.STORE_FAILED.labels("reply").inc()
            return
        if value is not None and not question.reply.done():
            question.reply.set_result(value)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self.channel)
                    while True:
                        message = await pubsub.get_message(timeout=_POLL_S)
                        if message is not None:
                            self._heard(message)
            except (RedisError, OSError) as error:
                if self.listening:
                    self._log.warning("replies cannot be heard", error=type(error).__name__)
                self.listening = False
                metrics.STORE_FAILED.labels("reply").inc()
            await asyncio.sleep(_RETRY_S)

    def _heard(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self.listening = True
            self._subscribed.set()
            for question in self._open.values():  # told while nobody listened
                self._start_fetch(question)
        elif message["type"] == "message":
            asked = self._open.get(message["data"])
            if asked is not None:
                self._start_fetch(asked)

    def _start_fetch(self, question: Question) -> None:
        task = asyncio.create_task(self._fetch(question))
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)
