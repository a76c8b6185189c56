"""The examples of the README do what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from streams.events import Bad, decode
from streams.kafka import create_topics
from streams.settings import KafkaSettings
from streams.topics import REQUESTS, RESPONSES
from tests.integration.wire import read_until

pytestmark = pytest.mark.integration
README = Path(__file__).resolve().parents[2] / "README.md"


def block(word: str) -> str:
    """The Python block of the README that holds the word."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return next(text for text in blocks if word in text)


async def test_the_producer_publishes_valid_events(kafka_settings: KafkaSettings) -> None:
    await create_topics(kafka_settings)
    names: dict[str, Any] = {}
    exec(compile(block("AIOKafkaProducer"), "README.md", "exec"), names)
    await names["main"](kafka_settings.bootstrap)
    for topic in (REQUESTS, RESPONSES):
        seen = await read_until(
            kafka_settings, topic, lambda records: any(r.get("conversation_id") == "c-17" for r in records)
        )
        event = next(record for record in seen if record.get("conversation_id") == "c-17")
        assert not isinstance(decode(json.dumps(event).encode()), Bad)
