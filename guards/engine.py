"""The engine: plan → shared artifacts, computed once → guards → findings → the policy's decision.

A `Scan` is one batch on its way. It can be asked for its decisions at any moment: what has not been looked at by then
is a failure (`timeout`), never a clean result. That is how an inline answer keeps its deadline whatever hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import msgspec

from guards.artifacts import Artifacts, Cache
from guards.errors import ConfigError
from guards.guard import Guard, Result, build
from guards.masking import Hasher
from guards.models import ModelStore
from guards.outside import Outside
from guards.policy import Policy, options_of
from guards.text import texts_of
from guards.types import (
    Coverage,
    Decision,
    Exchange,
    Failed,
    Failure,
    FailureCode,
    Finding,
    Location,
    Range,
    Span,
    Stage,
    Text,
    Timing,
    Unit,
)

__all__ = ["Engine", "Item", "Scan"]

SCORE_FLOOR = 0.2
"""Findings below this keep only the highest of their kind: enough to decide anew, and records stay small."""

VERDICT_CACHE_ENTRIES = 50_000
"""Verdicts of single texts; about 300 bytes each, so 15 MB when full."""

OnError = Callable[[str, BaseException], None]


class Item(msgspec.Struct, frozen=True):
    """One thing to check."""

    exchange: Exchange
    stage: Stage


class Engine:
    """All guards of a profile, with the models they share. Thread-safe; one per process.

    ``guards``: ready-made guards by name; default: those that the policy names, built with the profile's ``options``
    from ``models`` (blocks for seconds while models load; raises `ModelMissingError`, `ConfigError`).
    ``on_error(guard, exception)`` is told of exceptions that guards raised; they count as `FailureCode.ERROR`.
    ``hasher``: for rules with ``mask: hash``; without one they replace by the kind's name.
    ``outside``: with it this is the engine of the slow guards, which runs them and no others; without it, it runs all
    others, and lists the slow guards that will look as pending.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        guards: Mapping[str, Guard] | None = None,
        models: ModelStore | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        on_error: OnError | None = None,
        hasher: Hasher | None = None,
        outside: Outside | None = None,
    ) -> None:
        models = models or ModelStore()
        self._build = None if guards is not None else partial(build, options=options or {}, models=models)
        self.guards: Mapping[str, Guard] = dict(guards or {})
        self.artifacts = Artifacts(models.encoder, models.entities, outside=outside)
        self.runs_slow = outside is not None
        self.on_error = on_error
        self.hasher = hasher
        self._verdicts: Cache[Result] = Cache(VERDICT_CACHE_ENTRIES)
        self._options: Cache[Any] = Cache(1_000)
        self.adopt(policy)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy

    def adopt(self, policy: Policy) -> None:
        """Put a policy in force. Atomic: a scan that has begun keeps the one it began with.

        Guards that it names and that are not loaded yet are built (blocks for seconds). Raises `ConfigError` if it
        names a guard or an option that there is not, and `ModelMissingError`; then the policy before stays in force.
        """
        missing = [name for name in policy.guards if name not in self.guards and self._concerns(name, policy)]
        if missing and self._build is not None:
            self.guards = {**self.guards, **self._build(missing)}
        self._check_options(policy)
        self._policy = policy

    def _concerns(self, name: str, policy: Policy) -> bool:
        return not self.runs_slow or name in policy.slow_guards

    def _check_options(self, policy: Policy) -> None:
        for name, settings in policy.guards.items():
            if not self._concerns(name, policy):
                continue
            guard = self.guards.get(name)
            if guard is None:
                raise ConfigError(
                    f"policy {policy.name}: the guard {name!r} is not loaded here; loaded are {', '.join(self.guards)}"
                )
            options_of(guard.options_type, settings.options, f"guards.{name}.options")
            impossible = set(settings.stages or ()) - guard.stages
            if impossible:
                raise ConfigError(f"guards.{name}.stages: it cannot look at {', '.join(sorted(impossible))}")
        for i, override in enumerate(policy.document.overrides):
            for name, change in override.guards.items():
                if self._concerns(name, policy):
                    # Merged: what an override leaves out may be required.
                    options = {**policy.guards[name].options, **(change.options or {})}
                    options_of(self.guards[name].options_type, options, f"overrides.{i}.guards.{name}.options")

    def forget(self) -> None:
        """Empty the caches: the next text is looked at as if it were new. For measuring."""
        self._verdicts.clear()
        self.artifacts.forget()

    def warm(self) -> None:
        """Run every guard once, so that the first real text is not slower than the hundredth."""
        from guards.types import Document, Message

        words = "Please ask John Smith in Berlin for the invoice of 3 May. It is paid."
        exchange = Exchange(
            messages=[Message("user", words)], response=[Message("assistant", words)], documents=[Document(words)]
        )
        for stage in ("request", "response"):
            self.check(exchange, stage)

    def check(
        self, exchange: Exchange, stage: Stage, *, policy: Policy | None = None, inline_only: bool = False
    ) -> Decision:
        """Check one exchange at one stage. Blocks for milliseconds; never raises for what the exchange holds."""
        return self.check_batch([Item(exchange, stage)], policy=policy, inline_only=inline_only)[0]

    def check_batch(
        self, items: Sequence[Item], *, policy: Policy | None = None, inline_only: bool = False
    ) -> list[Decision]:
        """Check a batch under one policy version; one decision per item, in order."""
        scan = self.scan(items, policy=policy, inline_only=inline_only)
        scan.run()
        return scan.decisions()

    def scan(
        self,
        items: Sequence[Item],
        *,
        policy: Policy | None = None,
        inline_only: bool = False,
        deadline: float | None = None,
    ) -> Scan:
        """Prepare a scan without running it. ``deadline`` is in `time.perf_counter` seconds."""
        return Scan(self, items, policy or self._policy, inline_only=inline_only, deadline=deadline)

    def options(self, guard: Guard, policy: Policy) -> Any:
        """The guard's typed options under a policy. Equal options are one object, whatever policy they come from, so
        that looking them up in a cache compares no thousand terms."""
        raw = policy.guards[guard.name].options
        known: tuple[Any, Any] | None = self._options.get((guard.name, id(raw)))
        if known is not None and known[0] is raw:
            return known[1]
        key = (guard.name, msgspec.json.encode(raw, order="sorted"))
        options = self._options.get(key)
        if options is None:
            options = options_of(guard.options_type, raw, f"guards.{guard.name}.options")
            self._options.put(key, options)
        self._options.put((guard.name, id(raw)), (raw, options))
        return options


class _Job:
    """One guard with one set of options over the units of a scan; shared verdicts are asked for once."""

    def __init__(self, guard: Guard, options: Any) -> None:
        self.guard = guard
        self.options = options
        # Distinct unit → the places (item number, unit) that want its result.
        self.wanted: dict[object, tuple[Unit, list[int]]] = {}
        self.units: dict[int, list[tuple[object, Unit]]] = {}
        self.results: dict[object, Result] = {}

    def add(self, item_no: int, key: object, unit: Unit) -> None:
        self.wanted.setdefault(key, (unit, []))[1].append(item_no)
        self.units.setdefault(item_no, []).append((key, unit))


class Scan:
    """A batch on its way through the guards. `run` blocks in one thread; `decisions` may be called from another."""

    def __init__(
        self, engine: Engine, items: Sequence[Item], policy: Policy, *, inline_only: bool, deadline: float | None
    ) -> None:
        self._engine = engine
        self._items = items
        self._deadline = deadline
        self._began = perf_counter()
        self._ended: float | None = None
        self._spent_ms: dict[str, float] = {}
        self._cancelled = threading.Event()
        self.policy = policy
        self._policies = [policy.resolve(item.exchange.tenant, item.exchange.route) for item in items]
        self._skipped: list[list[str]] = [[] for _ in items]
        self._pending: list[list[str]] = [[] for _ in items]
        self._jobs: dict[tuple[str, Any], _Job] = {}
        self._plan(inline_only)

    # ------------------------------------------------------------ plan

    def _plan(self, inline_only: bool) -> None:
        for number, (item, policy) in enumerate(zip(self._items, self._policies, strict=True)):
            texts = texts_of(item.exchange, item.stage)
            whole = Unit(texts, item.exchange, item.stage)
            singles = [Unit((text,), item.exchange, item.stage) for text in texts]
            for name, settings in policy.guards.items():
                if not self._engine._concerns(name, self.policy):
                    continue
                guard = self._engine.guards[name]
                later = name in self.policy.slow_guards and not self._engine.runs_slow
                stages = guard.stages if settings.stages is None else settings.stages
                if item.stage not in stages or (inline_only and not settings.inline and not later):
                    self._skipped[number].append(name)
                    continue
                options = self._engine.options(guard, policy)
                units = [whole] if guard.unit == "exchange" else singles
                units = [unit for unit in units if guard.applies(unit, options)]
                if not units:
                    self._skipped[number].append(name)
                    continue
                if later:
                    self._pending[number].append(name)
                    continue
                job = self._jobs.setdefault((name, options), _Job(guard, options))
                for unit in units:
                    job.add(number, number if guard.unit == "exchange" else _text_key(unit), unit)

    @property
    def nothing_to_do(self) -> bool:
        """Whether no guard has anything to look at."""
        return not self._jobs

    # ------------------------------------------------------------ run

    def run(self) -> None:
        """Run all guards, the cheapest prepared together; blocks. Stops between guards once the deadline passed."""
        pending: list[tuple[_Job, list[object]]] = []
        embed: list[str] = []
        parse: list[str] = []
        for job in self._jobs.values():
            todo = []
            for key, (unit, _) in job.wanted.items():
                cached = self._cached(job, key)
                if cached is not None:
                    job.results[key] = cached
                    continue
                todo.append(key)
                needs = job.guard.needs(unit, job.options)
                embed.extend(needs.embed)
                parse.extend(needs.parse)
            if todo:
                pending.append((job, todo))
        # Guards that need no artifact give their findings before the models have run.
        pending.sort(key=lambda entry: self._needs_artifacts(*entry))
        prepared = False
        for job, todo in pending:
            if not prepared and self._needs_artifacts(job, todo):
                prepared = True
                if self._out_of_time():
                    break
                self._prepare(embed, parse)
            if self._out_of_time():
                break
            began = perf_counter()
            self._check(job, todo)
            self._spent_ms[job.guard.name] = self._spent_ms.get(job.guard.name, 0.0) + (perf_counter() - began) * 1000
        self._ended = perf_counter()

    def cancel(self) -> None:
        """Nobody waits any more: stop before the next guard."""
        self._cancelled.set()

    def _out_of_time(self) -> bool:
        if self._cancelled.is_set():
            return True
        return self._deadline is not None and perf_counter() >= self._deadline

    def _needs_artifacts(self, job: _Job, todo: Sequence[object]) -> bool:
        for key in todo:
            needs = job.guard.needs(job.wanted[key][0], job.options)
            if needs.embed or needs.parse:
                return True
        return False

    def _prepare(self, embed: list[str], parse: list[str]) -> None:
        try:
            self._spent_ms.update(self._engine.artifacts.prepare(embed, parse))
        except Exception as error:  # the guards that need them ask again, text by text, and fail for themselves
            self._tell("artifacts", error)

    def _cached(self, job: _Job, key: object) -> Result | None:
        if job.guard.unit != "text":
            return None
        return self._engine._verdicts.get((job.guard.name, job.guard.version, job.options, key))

    def _check(self, job: _Job, todo: list[object]) -> None:
        units = [job.wanted[key][0] for key in todo]
        try:
            results = list(job.guard.check(units, job.options, self._engine.artifacts))
            if len(results) != len(units):
                raise RuntimeError(f"the guard {job.guard.name} gave {len(results)} results for {len(units)} units")
        except Exception as error:  # one bad text must not spoil the batch: ask one by one
            if len(units) == 1:
                self._tell(job.guard.name, error)
                results = [Failure(FailureCode.ERROR)]
            else:
                results = [self._check_one(job, unit) for unit in units]
        for key, result in zip(todo, results, strict=True):
            job.results[key] = result
            if job.guard.unit == "text" and not isinstance(result, Failure):
                self._engine._verdicts.put((job.guard.name, job.guard.version, job.options, key), tuple(result))

    def _check_one(self, job: _Job, unit: Unit) -> Result:
        if self._out_of_time():
            return Failure(FailureCode.TIMEOUT)
        try:
            (result,) = job.guard.check([unit], job.options, self._engine.artifacts)
        except Exception as error:
            self._tell(job.guard.name, error)
            return Failure(FailureCode.ERROR)
        return result

    def _tell(self, name: str, error: BaseException) -> None:
        if self._engine.on_error is not None:
            self._engine.on_error(name, error)

    # ------------------------------------------------------------ decide

    def decisions(self) -> list[Decision]:
        """One decision per item, in order, from what is known now."""
        return [self._decide(number) for number in range(len(self._items))]

    def _decide(self, number: int) -> Decision:
        item, policy = self._items[number], self._policies[number]
        findings: list[Finding] = []
        failed: list[Failed] = []
        scanned: list[str] = []
        guards_ms: dict[str, float] = {}
        for (name, _), job in self._jobs.items():
            units = job.units.get(number)
            if units is None:
                continue
            seen, failure = self._outcome(job, units)
            findings.extend(seen)
            if failure is None:
                scanned.append(name)
            else:
                failed.append(Failed(name, failure.code))
            if name in self._spent_ms:
                guards_ms[name] = round(self._spent_ms[name] / len(job.units), 3)
        for artifact in ("embeddings", "entities"):
            if artifact in self._spent_ms:
                guards_ms[artifact] = round(self._spent_ms[artifact] / len(self._items), 3)
        verdict = policy.decide(findings, failed, item.stage, self._digest(item))
        ended = self._ended if self._ended is not None else perf_counter()
        return Decision(
            decision=verdict.decision,
            stage=item.stage,
            policy=self.policy.ref,
            reasons=verdict.reasons,
            shadow=verdict.shadow,
            redactions=verdict.redactions,
            coverage=Coverage(
                tuple(scanned), tuple(self._skipped[number]), tuple(failed), tuple(self._pending[number])
            ),
            findings=tuple(findings),
            timing=Timing(round((ended - self._began) * 1000, 3), guards_ms),
        )

    def _digest(self, item: Item) -> Callable[[Span], str] | None:
        hasher = self._engine.hasher
        if hasher is None:
            return None

        def digest(span: Span) -> str:
            texts = {text.location: text.text for text in texts_of(item.exchange, item.stage)}
            return hasher(item.exchange.tenant, texts[span.location][span.start : span.end])

        return digest

    def _outcome(self, job: _Job, units: Sequence[tuple[object, Unit]]) -> tuple[list[Finding], Failure | None]:
        """What a guard saw in one item, and its first failure: one text that it could not see makes it a failure,
        and what it saw in the others still counts."""
        findings: list[Finding] = []
        failure: Failure | None = None
        for key, unit in units:
            result = job.results.get(key, Failure(FailureCode.TIMEOUT))
            if isinstance(result, Failure):
                failure = failure or result
                continue
            findings.extend(
                Finding(
                    guard=job.guard.name,
                    kind=hit.kind,
                    score=hit.score,
                    spans=tuple(_span(part, unit.texts[part.text], hit.kind) for part in hit.ranges),
                )
                for hit in result
            )
        return _compact(findings), failure


def _text_key(unit: Unit) -> object:
    """What a per-text verdict depends on: a place matters only through role, stage and whether it is a tool call."""
    (text,) = unit.texts
    return (text.text, text.role, text.location.tool_call is not None, unit.stage)


def _span(part: Range, text: Text, kind: str) -> Span:
    place: Location = text.location
    return Span(
        start=part.start,
        end=part.end,
        kind=kind,
        message=place.message,
        part=place.part,
        tool_call=place.tool_call,
        document=place.document,
    )


def _compact(findings: list[Finding]) -> list[Finding]:
    """Keep all findings from `SCORE_FLOOR` on, and of each kind the highest whatever its score."""
    highest: dict[str, float] = {}
    for finding in findings:
        highest[finding.kind] = max(finding.score, highest.get(finding.kind, 0.0))
    kept: list[Finding] = []
    shown: set[str] = set()
    for finding in findings:
        if finding.score >= SCORE_FLOOR:
            kept.append(finding)
        elif (
            highest[finding.kind] < SCORE_FLOOR and finding.score == highest[finding.kind] and finding.kind not in shown
        ):
            shown.add(finding.kind)
            kept.append(finding)
    return kept
