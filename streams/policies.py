"""The policy in force lives in the topic ``llm.policy``: every version under ``<name>@<version>``, a pointer per name.

A new pointer is a hot reload in every process that follows the topic.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable
from time import time
from typing import Any

import msgspec
from aiokafka.errors import KafkaError

from guards.errors import ConfigError, GuardsError, PolicyError
from guards.policy import Policy
from streams import metrics
from streams.events import iso
from streams.kafka import Publisher, Record, make_consumer
from streams.readback import read_to_end
from streams.records import PolicyPointer, PolicyVersion, encode
from streams.settings import KafkaSettings, Settings
from streams.topics import POLICY

__all__ = ["PolicyFeed", "PolicyHistory", "apply_policy", "read_policies"]

_START_TIMEOUT_S = 30.0
"""Reading a compacted topic of policies takes milliseconds; longer means that the broker does not answer."""


class PolicyHistory:
    """What ``llm.policy`` says: fed record by record, pure."""

    def __init__(self) -> None:
        self.versions: dict[str, list[PolicyVersion]] = {}
        self.pointers: dict[str, PolicyPointer] = {}

    def feed(self, value: bytes | None) -> None:
        """Take one record in; what is neither a version nor a pointer is ignored."""
        if value is None:
            return
        try:
            record = _decoder.decode(value)
        except (msgspec.DecodeError, msgspec.ValidationError):
            return
        if isinstance(record, PolicyPointer):
            self.pointers[record.name] = record
            return
        versions = self.versions.setdefault(record.name, [])
        if all(version.version != record.version for version in versions):
            versions.append(record)

    def in_force(self, name: str) -> PolicyVersion | None:
        """The version that the pointer names, if both are there."""
        pointer = self.pointers.get(name)
        if pointer is None:
            return None
        return next((v for v in self.versions.get(name, ()) if v.version == pointer.version), None)


_decoder = msgspec.json.Decoder(PolicyVersion | PolicyPointer)


class PolicyFeed:
    """Follows ``llm.policy`` and tells ``accept`` of each policy that comes into force.

    ``accept`` is called in a thread and may block. It raises `GuardsError` for a policy that cannot be used here: that
    is logged and counted, and the one before stays in force.
    """

    def __init__(self, settings: Settings, accept: Callable[[Policy], None], log: Any) -> None:
        self._settings = settings
        self._accept = accept
        self._log = log
        self._history = PolicyHistory()
        self._task: asyncio.Task[None] | None = None
        self._consumer: Any = None
        self.current: Policy | None = None
        self.refused: str | None = None

    async def start(self) -> None:
        """Read the topic to its end and accept what is in force; publish the stock policy first if there is none.

        Raises `ConfigError` if the policy in force cannot be used here, `GuardsError` if the topic cannot be read.
        """
        self._consumer = make_consumer(self._settings.kafka, POLICY)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._consumer.start()
                await self._catch_up()
                if self._history.in_force(self._settings.policy) is None:
                    await self._seed()
                    await self._until_in_force()
        except (KafkaError, TimeoutError) as error:
            raise GuardsError(
                f"the topic {POLICY} cannot be read ({type(error).__name__}); is the broker up, and has "
                "`tidegate topics create` been run?"
            ) from error
        version = self._history.in_force(self._settings.policy)
        assert version is not None
        await self._switch(Policy.parse(version.source, f"{version.name}@{version.version}"))
        self._task = asyncio.create_task(self._follow(), name="policy-feed")

    async def stop(self) -> None:
        task, self._task = self._task, None  # first: an end that was asked for is no failure
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()

    async def watch(self) -> None:
        """Returns when `stop` was called; raises `GuardsError` when the feed ends before."""
        if (task := self._task) is not None:
            await asyncio.wait({task})
        if self._task is not None:
            raise GuardsError("the policy feed has ended")

    @property
    def failed(self) -> str | None:
        """Why the feed no longer follows, if it does not."""
        if self._task is None or not self._task.done():
            return None
        return "the policy feed has ended"

    async def _catch_up(self) -> None:
        async for record in read_to_end(self._consumer, self._consumer.assignment()):
            self._history.feed(record.value)

    def _feed(self, batches: dict[Any, list[Any]]) -> None:
        for records in batches.values():
            for record in records:
                self._history.feed(record.value)

    async def _until_in_force(self) -> None:
        while self._history.in_force(self._settings.policy) is None:
            self._feed(await self._consumer.getmany(timeout_ms=200))

    async def _seed(self) -> None:
        path = self._settings.policy_file
        policy = Policy.default() if path is None else Policy.load(path)
        if policy.name != self._settings.policy:
            raise ConfigError(
                f"the policy file is named {policy.name!r} and the settings ask for {self._settings.policy!r}; "
                "set TIDEGATE_POLICY to the name in the file"
            )
        await apply_policy(self._settings.kafka, policy, author="tidegate", comment="the first policy")

    async def _follow(self) -> None:
        while True:
            self._feed(await self._consumer.getmany(timeout_ms=200))
            version = self._history.in_force(self._settings.policy)
            if version is None or self.current is None or version.version == self.refused:
                continue
            if version.version == self.current.version:
                self.refused = None  # the pointer went back to what is in force
                continue
            try:
                await self._switch(Policy.parse(version.source, f"{version.name}@{version.version}"))
            except GuardsError as error:
                self.refused = version.version
                metrics.POLICY_REFUSED.inc()
                self._log.error("policy refused", policy=version.name, version=version.version, why=str(error))

    async def _switch(self, policy: Policy) -> None:
        # In a thread: a policy may name a guard whose model must be loaded first.
        await asyncio.to_thread(self._accept, policy)
        self.current = policy
        self.refused = None
        metrics.POLICY_SWITCHES.inc()
        self._log.info("policy in force", policy=policy.name, version=policy.version)


async def apply_policy(kafka: KafkaSettings, policy: Policy, *, author: str = "", comment: str = "") -> PolicyVersion:
    """Publish a policy and put it in force: first the version, then the pointer; returns when both are acknowledged."""
    if not policy.source:
        raise PolicyError(policy.name, ["has no source text to publish"])
    now = iso(time() * 1000)
    author = author or getpass.getuser()
    version = PolicyVersion(policy.name, policy.version, policy.source, now, author, comment)
    pointer = PolicyPointer(policy.name, policy.version, now, author)
    publisher = Publisher(kafka)
    await publisher.start()
    try:
        await publisher.publish([Record(POLICY, f"{policy.name}@{policy.version}".encode(), encode(version))])
        await publisher.publish([Record(POLICY, policy.name.encode(), encode(pointer))])
    finally:
        await publisher.stop()
    return version


async def read_policies(kafka: KafkaSettings) -> PolicyHistory:
    """All versions and pointers that the topic holds now."""
    history = PolicyHistory()
    consumer = make_consumer(kafka, POLICY)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            await consumer.start()
            async for record in read_to_end(consumer, consumer.assignment()):
                history.feed(record.value)
    except (KafkaError, OSError, TimeoutError) as error:
        raise GuardsError(f"the topic {POLICY} at {kafka.bootstrap} cannot be read: {type(error).__name__}") from error
    finally:
        await consumer.stop()
    return history
