"""The topics: names, partitions, retention and cleanup. One table; `tidegate topics create` makes them so."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["ALERTS", "DECISIONS", "DLQ", "METRICS", "POLICY", "REQUESTS", "RESPONSES", "TOPICS", "WINDOWS", "Topic"]

REQUESTS: Final = "llm.requests"
RESPONSES: Final = "llm.responses"
DECISIONS: Final = "llm.decisions"
ALERTS: Final = "llm.alerts"
METRICS: Final = "llm.metrics"
WINDOWS: Final = "llm.windows"
POLICY: Final = "llm.policy"
DLQ: Final = "llm.dlq"

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

MAX_MESSAGE_BYTES: Final = 1_200_000
"""An event at the cap (1 MiB) with its headers; Kafka's default would refuse it."""


class Topic(msgspec.Struct, frozen=True):
    """A topic as Tidegate wants it. ``partitions`` 0: the configured number (default 8)."""

    name: str
    what: str
    key: str
    cleanup: str
    retention_ms: int
    partitions: int = 0

    def config(self) -> dict[str, str]:
        """The topic's configuration, as Kafka spells it."""
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
        }


TOPICS: Final = (
    Topic(REQUESTS, "requests from services and from the sidecar", "conversation_id", "delete", 7 * DAY_MS),
    Topic(RESPONSES, "responses from services and from the sidecar", "conversation_id", "delete", 7 * DAY_MS),
    Topic(
        DECISIONS,
        "decisions and their amendments",
        "conversation_id",
        "delete",
        30 * DAY_MS,
    ),
    Topic(ALERTS, "alerts, firing and resolved", "alert key", "delete", 30 * DAY_MS),
    Topic(METRICS, "window roll-ups, once a tick", "series", "delete", DAY_MS),
    # Longer than the longest horizon; totals are written again before they would be dropped.
    Topic(WINDOWS, "the windows' own state", "source partition, series, bucket, epoch", "compact,delete", 7 * DAY_MS),
    Topic(POLICY, "policy versions, and a pointer per name", "name and version", "compact", -1, partitions=1),
    Topic(DLQ, "what could not be processed", "original key", "delete", 30 * DAY_MS),
)
