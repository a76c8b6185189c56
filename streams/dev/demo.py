"""Made-up traffic for `tidegate up`: the exchanges of demo.jsonl, round after round, as services would publish them.

A line of demo.jsonl is ``{"conversation", "request", "response"}``: the events without ids and times. Lines with the
same ``conversation`` are turns of one conversation. No person, card or key in it is real.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final
from uuid import uuid4

import msgspec

from guards.errors import GuardsError
from streams.events import REQUEST_SCHEMA, RESPONSE_SCHEMA, iso
from streams.kafka import Publisher, Record
from streams.log import configure, get_logger
from streams.settings import KafkaSettings, load_settings
from streams.topics import REQUESTS, RESPONSES

__all__ = ["DemoExchange", "load_exchanges", "records_of", "run_demo"]

RATE_PER_S: Final = 5.0
"""Exchanges a second: enough to see windows move, a few per cent of what one core can check."""

LONGEST_ANSWER_S: Final = 3.0
"""A response follows its request after its own ``duration_ms``, but no later than this: a round stays a round."""


class DemoExchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of demo.jsonl."""

    conversation: str
    request: dict[str, Any]
    response: dict[str, Any]

    @property
    def answer_s(self) -> float:
        duration_ms: float = self.response.get("timing", {}).get("duration_ms", 500.0)
        return min(duration_ms / 1000, LONGEST_ANSWER_S)


def load_exchanges() -> list[DemoExchange]:
    """All lines of demo.jsonl, in order."""
    lines = (files("streams.dev") / "demo.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=DemoExchange) for line in lines]


def records_of(exchange: DemoExchange, *, round_id: str, exchange_id: str, asked_ms: float) -> tuple[Record, Record]:
    """Request and response as they go to their topics. Pure. The same conversation of another round is another one."""
    conversation = f"{exchange.conversation}-{round_id}"
    ids = {"exchange_id": exchange_id, "conversation_id": conversation}
    request = {"schema": REQUEST_SCHEMA, **ids, "time": iso(asked_ms), **exchange.request}
    answered_ms = asked_ms + exchange.answer_s * 1000
    response = {"schema": RESPONSE_SCHEMA, **ids, "time": iso(answered_ms), **exchange.response}
    key = conversation.encode()
    return (
        Record(REQUESTS, key, msgspec.json.encode(request)),
        Record(RESPONSES, key, msgspec.json.encode(response)),
    )


async def run_demo(settings: KafkaSettings, *, rate_per_s: float = RATE_PER_S) -> None:
    """Publish until cancelled, at about ``rate_per_s`` with random gaps, as independent callers would.

    Raises `PublishError` when the broker does not acknowledge.
    """
    publisher = Publisher(settings)
    await publisher.start()
    exchanges = load_exchanges()
    try:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await _one_round(publisher, exchanges, tasks, rate_per_s)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    finally:
        await publisher.stop()


async def _one_round(
    publisher: Publisher, exchanges: Sequence[DemoExchange], tasks: asyncio.TaskGroup, rate_per_s: float
) -> None:
    round_id = uuid4().hex[:8]
    for exchange in exchanges:
        tasks.create_task(_one_exchange(publisher, exchange, round_id))
        await asyncio.sleep(random.expovariate(rate_per_s))


async def _one_exchange(publisher: Publisher, exchange: DemoExchange, round_id: str) -> None:
    now_ms = time.time() * 1000
    request, response = records_of(exchange, round_id=round_id, exchange_id=uuid4().hex, asked_ms=now_ms)
    await publisher.publish([request])
    await asyncio.sleep(exchange.answer_s)
    await publisher.publish([response])


async def _until_told() -> int:
    settings = load_settings()
    configure(settings.log_format, settings.log_level)
    log = get_logger("demo")
    publishing = asyncio.create_task(run_demo(settings.kafka))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, publishing.cancel)
    try:
        await publishing
    except asyncio.CancelledError:
        return 0
    except GuardsError as error:
        log.error("demo.failed", why=str(error))
        return 1
    return 0


def main() -> int:
    """``python -m streams.dev.demo``: until SIGTERM. Exit code 1 when the broker does not take the events."""
    import setproctitle

    setproctitle.setproctitle("tidegate demo")
    return asyncio.run(_until_told())


if __name__ == "__main__":
    sys.exit(main())
