"""The one evaluator: merges all owners' windows, and alone writes llm.metrics and the alerts of rules.

Every monitor tries for the lease; one has it. Its fencing token grows with every change of hands and goes with each
record (header ``tidegate-fence``): who has seen a higher one passes over what a frozen evaluator still writes.
"""

from __future__ import annotations

import asyncio
import secrets
from time import monotonic, time
from typing import Any, Final

import msgspec
import orjson
from redis.exceptions import RedisError

from guards.errors import GuardsError
from streams.kafka import RUN_HEADER, Headers, Publisher, Record, make_consumer
from streams.monitor.alerts import Alerts
from streams.monitor.report import metrics_record
from streams.monitor.rules import AlertRules
from streams.monitor.windows import Series
from streams.readback import partitions_of, read_to_end
from streams.records import Alert, encode
from streams.settings import Settings
from streams.store import Store, StoreError
from streams.topics import ALERTS, METRICS
from streams.windows_reader import WindowsReader
from streams.worker.persistence import Persistence

__all__ = ["FENCE_HEADER", "Evaluator", "Lease"]

FENCE_HEADER: Final = "tidegate-fence"

ALERTS_READ_MAX: Final = 10_000
"""Alert records read back per partition at a take-over; what still fires is told again or renewed long before."""

TICK_BUDGET_S: Final = 0.2
"""Metrics of changed series are written for so long per tick; the others follow at the next."""

CATCH_UP_S: Final = 120.0

# The token comes from the clock, so that it also grows when Redis was emptied, and grows by one if the clock does not.
_ACQUIRE: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local now = redis.call('TIME')
local token = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('SET', KEYS[2], string.format('%.0f', token))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return token
"""
_RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""


class Lease:
    """A lease in Redis with a fencing token. Raises `StoreError` when Redis does not answer."""

    def __init__(self, store: Store, name: str, lease_s: float) -> None:
        self._store = store
        self._name = name
        self._me = secrets.token_hex(16)
        self._lease_s = lease_s
        self._acquire = store.redis.register_script(_ACQUIRE)
        self._renew = store.redis.register_script(_RENEW)
        self._release = store.redis.register_script(_RELEASE)
        self._until_s = 0.0
        self.token = 0

    @property
    def held(self) -> bool:
        """Whether it is certain, by this process's own clock, that nobody else has it."""
        return self.token > 0 and monotonic() < self._until_s

    @property
    def _keys(self) -> list[str]:
        return [self._store.key("lease", self._name), self._store.key("lease-token", self._name)]

    async def take(self) -> bool:
        """Take or renew it. False: another has it."""
        asked_s = monotonic()
        args: list[str | int] = [self._me, round(self._lease_s * 1000)]
        try:
            if self.token and not await self._renew(keys=self._keys, args=args):
                self.token = 0
            if not self.token:
                self.token = int(await self._acquire(keys=self._keys, args=args))
        except (RedisError, OSError) as error:
            raise StoreError(f"the store failed: {type(error).__name__}") from error
        self._until_s = asked_s + self._lease_s
        return self.token > 0

    async def release(self) -> None:
        if self.token:
            self.token = 0
            try:
                await self._release(keys=self._keys, args=[self._me])
            except (RedisError, OSError) as error:
                raise StoreError(f"the store failed: {type(error).__name__}") from error


class Evaluator:
    """Runs in every monitor; does something in the one that holds the lease."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        publisher: Publisher,
        rules: AlertRules,
        persistence: Persistence,
        log: Any,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._rules = rules
        self._persistence = persistence
        self._log = log
        self._lease = Lease(store, "evaluator", settings.monitor.lease_s)
        self._reader: WindowsReader | None = None
        self._alerts: Alerts | None = None
        self._changed: dict[Series, None] = {}

    async def run(self) -> None:
        """Forever: once per ``flush_s``. What is not acknowledged within 60 s ends the process."""
        pause_s = min(self._settings.monitor.flush_s, self._settings.monitor.lease_s / 3)
        due_s = 0.0
        while True:
            if not await self._persistence.until_done("lease", self._lease.take):
                await self._step_down()
            elif self._reader is None or self._alerts is None:
                await self._persistence.until_done("evaluator", self._take_over)
            elif self._reader.failed is not None:
                raise GuardsError(self._reader.failed)
            elif monotonic() >= due_s:
                due_s = monotonic() + self._settings.monitor.flush_s * 0.9
                await self._persistence.until_done("evaluation", self._tick)
            await asyncio.sleep(pause_s)

    async def stop(self) -> None:
        await self._step_down()
        await self._lease.release()

    async def _step_down(self) -> None:
        reader, self._reader, self._alerts = self._reader, None, None
        self._changed = {}
        if reader is not None:
            await reader.stop()

    async def _take_over(self) -> None:
        """Read the windows, and from llm.alerts what was told: nothing that fires is fired again.

        Returns without having taken over when the lease is lost meanwhile.
        """
        reader = WindowsReader(self._settings)
        try:
            await reader.start()
            alerts = Alerts(self._rules)
            alerts.restore(await self._last_alerts())
            end_s = monotonic() + CATCH_UP_S
            while not reader.caught_up and reader.failed is None:
                if not await self._lease.take():
                    await reader.stop()
                    return
                if monotonic() > end_s:
                    raise TimeoutError(f"llm.windows was not read within {CATCH_UP_S:g} s")
                await asyncio.sleep(0.05)
        except BaseException:
            await reader.stop()
            raise
        self._reader, self._alerts = reader, alerts
        self._log.info("evaluating", fence=self._lease.token, firing=alerts.firing)

    async def _last_alerts(self) -> list[Alert]:
        """The last record of each key. Records of a token lower than one seen before are a frozen evaluator's."""
        consumer = make_consumer(self._settings.kafka)
        last: dict[str, tuple[int, Alert]] = {}
        try:
            await consumer.start()
            partitions = await partitions_of(consumer, ALERTS)
            consumer.assign(partitions)
            starts = await consumer.beginning_offsets(partitions)
            for tp, end in (await consumer.end_offsets(partitions)).items():
                consumer.seek(tp, max(starts[tp], end - ALERTS_READ_MAX))
            decoder = msgspec.json.Decoder(Alert)
            async for record in read_to_end(consumer, partitions):
                try:
                    alert = decoder.decode(record.value or b"")
                except msgspec.DecodeError:
                    self._log.warning("a record of llm.alerts is not ours", partition=record.partition)
                    continue
                fence = _fence(record.headers)
                held = last.get(alert.key)
                if held is None or fence >= held[0]:
                    last[alert.key] = (fence, alert)
        finally:
            await consumer.stop()
        return [alert for _, alert in last.values()]

    async def _tick(self) -> None:
        reader, alerts = self._reader, self._alerts
        if reader is None or alerts is None or not self._lease.held:
            return
        now_ms = round(time() * 1000)
        alerts.tick(reader.view, now_ms)
        max_age_ms = self._settings.monitor.notify_max_age_s * 1000
        due = alerts.due(reader.view, now_ms, notify_max_age_ms=max_age_ms)
        if due:
            await self._publish([Record(ALERTS, a.key.encode(), encode(a), self._headers(a.run)) for a in due])
            alerts.published(due)
            for alert in due:
                self._log.info("alert", key=alert.key, status=alert.status, count=alert.count)
        await self._publish_metrics(reader, now_ms)

    async def _publish_metrics(self, reader: WindowsReader, now_ms: int) -> None:
        view = reader.view
        self._changed.update(dict.fromkeys(view.take_changed()))
        end_ms = view.end_ms(view.as_of_ms(now_ms))
        until_s = monotonic() + TICK_BUDGET_S
        records: list[Record] = []
        done: list[Series] = []
        for series in list(self._changed):
            value = orjson.dumps(metrics_record(view, series, end_ms))
            records.append(Record(METRICS, msgspec.json.encode(series), value, self._headers(series.run)))
            done.append(series)
            if monotonic() > until_s:
                break
            if len(done) % 20 == 0:
                await asyncio.sleep(0)  # the partitions of this worker are counted meanwhile
        if records:
            await self._publish(records)
            for series in done:
                self._changed.pop(series, None)

    async def _publish(self, records: list[Record]) -> None:
        if not self._lease.held:
            raise StoreError("the lease ran out; another evaluates")
        await self._publisher.publish(records)

    def _headers(self, run: str) -> Headers:
        fence = (FENCE_HEADER, str(self._lease.token).encode())
        return (fence, (RUN_HEADER, run.encode())) if run else (fence,)


def _fence(headers: Any) -> int:
    for name, value in headers or ():
        if name == FENCE_HEADER and value is not None and value.isdigit():
            return int(value)
    return 0
