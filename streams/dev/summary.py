"""What `tidegate up` shows of the traffic: read from the HTTP endpoints of its processes and from the alerts topic."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import msgspec
from aiokafka.errors import KafkaError
from prometheus_client.parser import text_string_to_metric_families

from streams.kafka import make_consumer
from streams.records import Alert
from streams.settings import KafkaSettings
from streams.topics import ALERTS

__all__ = ["Accumulator", "Samples", "Summary", "TrafficWatch", "quantile", "read_samples"]

HTTP_TIMEOUT_S = 2.0
"""A process that takes longer to tell its numbers is left out of one refresh; the panel keeps the last ones."""

RETRY_S = 1.0
"""Pause before the alerts are read again after the broker failed to answer."""

Samples = dict[tuple[str, ...], float]
"""Counter values: ``("decision", path, action)``, and ``("bucket", path, le)`` of the checking time, cumulative."""


class Summary(msgspec.Struct, frozen=True):
    """Since `tidegate up` was started. Times in milliseconds; ``None``: not known (yet)."""

    requests: int | None = None
    responses: int | None = None
    errors: int | None = None
    decisions: Mapping[str, Mapping[str, int]] = {}  # by path, by action
    check_ms: Mapping[str, tuple[float, float]] = {}  # by path: p50, p95
    firing: Mapping[str, int] = {}  # alerts by rule


class Accumulator:
    """Sums counters over restarts of the process that exposes them: a counter that fell began again at zero."""

    def __init__(self) -> None:
        self._last: dict[str, Samples] = {}
        self.totals: Counter[tuple[str, ...]] = Counter()

    def add(self, process: str, samples: Samples) -> None:
        last = self._last.get(process, {})
        for name, value in samples.items():
            before = last.get(name, 0.0)
            self.totals[name] += value - before if value >= before else value  # type: ignore[assignment]
        self._last[process] = samples


def read_samples(exposition: str) -> Samples:
    """The counters that the panel needs, from a Prometheus text exposition."""
    samples: Samples = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "tidegate_decisions_total":
                name = ("decision", labels["path"], labels["decision"])
            elif sample.name == "tidegate_check_duration_seconds_bucket":
                name = ("bucket", labels["path"], labels["le"])
            else:
                continue
            samples[name] = samples.get(name, 0.0) + sample.value
    return samples


def quantile(share: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """The value below which ``share`` of a histogram lies, linear within a bucket, as Prometheus reckons.

    ``buckets``: upper bound and cumulative count, infinity last; a value in the last is told as the bound below it.
    """
    ordered = sorted(buckets)
    if not ordered or ordered[-1][1] <= 0:
        return None
    rank = share * ordered[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in ordered:
        if count >= rank and count > below:
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower


def summarise(
    totals: Mapping[tuple[str, ...], float], windows: Mapping[str, Any], firing: Mapping[str, Alert]
) -> Summary:
    """Pure: the counters, the monitor's totals and the alerts that fire → what is shown."""
    decisions: dict[str, dict[str, int]] = {}
    buckets: dict[str, list[tuple[float, float]]] = {}
    for name, value in totals.items():
        if name[0] == "decision":
            decisions.setdefault(name[1], {})[name[2]] = round(value)
        else:
            buckets.setdefault(name[1], []).append((float(name[2]), value))
    check_ms = {}
    for path, bounds in buckets.items():
        p50_s, p95_s = quantile(0.50, bounds), quantile(0.95, bounds)
        if p50_s is not None and p95_s is not None:
            check_ms[path] = (p50_s * 1000, p95_s * 1000)
    return Summary(
        requests=windows.get("requests"),
        responses=windows.get("responses"),
        errors=windows.get("errors"),
        decisions=decisions,
        check_ms=check_ms,
        firing=dict(Counter(alert.rule for alert in firing.values())),
    )


class TrafficWatch:
    """Asks the processes for their numbers (`refresh`) and follows the alerts (`follow_alerts`, until cancelled)."""

    def __init__(self, kafka: KafkaSettings, sidecar_url: str, metrics_urls: Iterable[str]) -> None:
        self._kafka = kafka
        self._sidecar_url = sidecar_url
        self._metrics_urls = list(metrics_urls)
        self._counters = Accumulator()
        self._windows: dict[str, Any] = {}
        self._firing: dict[str, Alert] = {}

    async def refresh(self, client: httpx.AsyncClient) -> Summary:
        """Never raises: what a process that is being started again cannot say stays as it was."""
        await asyncio.gather(
            *(self._read_metrics(client, url) for url in self._metrics_urls), self._read_windows(client)
        )
        return summarise(self._counters.totals, self._windows, self._firing)

    def forget_alerts(self) -> None:
        """The topic was made anew."""
        self._firing.clear()

    async def follow_alerts(self) -> None:
        while True:
            consumer = make_consumer(self._kafka, ALERTS)
            try:
                await consumer.start()
                async for record in consumer:
                    self._note(record.value)
            except (KafkaError, OSError):
                await asyncio.sleep(RETRY_S)
            finally:
                await consumer.stop()

    def _note(self, raw: bytes | None) -> None:
        try:
            alert = msgspec.json.decode(raw or b"", type=Alert)
        except msgspec.DecodeError:  # somebody else's record on a topic that all may write
            return
        if alert.status == "firing":
            self._firing[alert.key] = alert
        else:
            self._firing.pop(alert.key, None)

    async def _read_metrics(self, client: httpx.AsyncClient, url: str) -> None:
        if (reply := await _get(client, url)) is not None:
            self._counters.add(url, read_samples(reply.text))

    async def _read_windows(self, client: httpx.AsyncClient) -> None:
        reply = await _get(client, f"{self._sidecar_url}/v1/windows?total=true")
        if reply is not None:
            self._windows = reply.json().get("total", {})


async def _get(client: httpx.AsyncClient, url: str) -> httpx.Response | None:
    try:
        reply = await client.get(url, timeout=HTTP_TIMEOUT_S)
    except httpx.HTTPError:
        return None
    return reply if reply.status_code == 200 else None
