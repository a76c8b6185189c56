"""What fires, against what was told: the difference is published. Pure; ticks in event time, each run in its own.

`Alerts` keeps the state of all rules and, apart from it, the last record published under each key. So nothing is
told twice, what came and went while notifications waited is never told, what still holds is told once, and a new
evaluator that was given the topic's last records goes on where the one before stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from urllib.parse import quote

import msgspec

from streams.events import iso, to_ms
from streams.monitor.rules import AlertRules, Group, Rule, RuleState
from streams.monitor.view import HORIZONS_MS, View
from streams.monitor.windows import Bucket, Series
from streams.records import Alert
from streams.topics import DECISIONS, RESPONSES

__all__ = ["Alerts", "alert_key"]

BLOCKS: Final = "blocks"

CARRY_MS: Final = 3_600_000
"""An episode's count is summed from its start; after so long the older half is carried, before buckets are dropped."""


class _Episode(msgspec.Struct):
    """Blocks of one rule while they last. The count is ``carried`` and what lies in the buckets from ``from_ms`` on."""

    starts_ms: int
    from_ms: int
    carried: int = 0


def alert_key(rule: str, group: Group, *more: str) -> str:
    """``error-rate:acme/support``; names are percent-encoded, so that none can forge another's key."""
    path = "/".join(quote(part, safe="~") for part in (group.tenant, group.route, *more))
    return f"{rule}:{path}" + (f"#{quote(group.run, safe='')}" if group.run else "")


class Alerts:
    """Call `tick`, then publish what `due` returns, then say so with `published`."""

    def __init__(self, rules: AlertRules) -> None:
        self._rules = rules
        self._states: dict[tuple[str, Group], RuleState] = {}
        self._episodes: dict[tuple[Group, str], _Episode] = {}
        self._told: dict[str, Alert] = {}
        self._rules_ms: dict[str, int] = {}
        self._blocks_ms: dict[str, int] = {}

    def restore(self, last: Iterable[Alert]) -> None:
        """Take over: the last record of each key in llm.alerts."""
        names = {rule.name for rule in self._rules.rules}
        for alert in last:
            if alert.status != "firing":
                continue
            self._told[alert.key] = alert
            group = Group(alert.labels.get("tenant", ""), alert.labels.get("route", ""), alert.run)
            starts_ms = _ms(alert.starts_at)
            if alert.rule in names:
                self._states[alert.rule, group] = RuleState(starts_ms, True, alert.value)
            elif alert.rule == BLOCKS and "rule" in alert.labels:
                episode = _Episode(starts_ms, starts_ms)
                if _ms(alert.time) - starts_ms > CARRY_MS:
                    episode = _Episode(starts_ms, _ms(alert.time), alert.count or 0)
                self._episodes[group, alert.labels["rule"]] = episode

    def tick(self, view: View, now_ms: int) -> None:
        """Judge the windows, each run at its own event time.

        Rules over answers go by what was counted of the responses, blocks by what was counted of the decisions: those
        lag behind in a backlog, and a block must not be old before it is seen.
        """
        for run in view.runs():
            rules_ms = view.complete_to_ms(now_ms, run, RESPONSES)
            if rules_ms is not None and rules_ms >= self._rules_ms.get(run, 0):
                self._rules_ms[run] = rules_ms
                self._tick_rules(view, run, rules_ms)
            blocks_ms = view.complete_to_ms(now_ms, run, DECISIONS)
            if self._rules.blocks.enabled and blocks_ms is not None and blocks_ms >= self._blocks_ms.get(run, 0):
                since_ms = self._blocks_ms.get(run, blocks_ms)
                self._blocks_ms[run] = blocks_ms
                self._tick_blocks(view, run, since_ms, view.end_ms(blocks_ms))

    def _tick_rules(self, view: View, run: str, as_of_ms: int) -> None:
        names = {window for rule in self._rules.rules for window in rule.windows}
        end_ms = view.end_ms(as_of_ms)

        def group(series: Series) -> Group | None:
            return _group(series) if series.run == run else None

        sums = {name: view.collect(end_ms - HORIZONS_MS[name], end_ms, group) for name in names}
        nothing = Bucket()
        for rule in self._rules.rules:
            active = {group for name in rule.windows for group in sums[name]}
            watched = active | {group for name, group in self._states if name == rule.name and group.run == run}
            for watched_group in watched:
                place = (rule.name, watched_group)
                state = self._states.setdefault(place, RuleState())
                state.tick(rule, [sums[name].get(watched_group, nothing) for name in rule.windows], as_of_ms)
                if state.idle:
                    del self._states[place]

    def _tick_blocks(self, view: View, run: str, since_ms: int, end_ms: int) -> None:
        quiet_ms = self._rules.blocks.quiet_s * 1000
        # All of the time that went by since the last tick: in a backlog that is more than the quiet time.
        start_ms = min(end_ms - quiet_ms, since_ms - since_ms % view.bucket_ms)
        recent = view.collect(start_ms, end_ms, lambda series: _group(series) if series.run == run else None)
        blocking = {(group, rule) for group, bucket in recent.items() for rule in _blocks(bucket)}
        for place in [place for place in self._episodes if place[0].run == run and place not in blocking]:
            del self._episodes[place]
        for group, rule in blocking:
            episode = self._episodes.get((group, rule))
            if episode is None:
                starts_ms = _first_block(view, group, rule, start_ms, end_ms)
                self._episodes[group, rule] = _Episode(starts_ms, starts_ms)
            elif end_ms - episode.from_ms > CARRY_MS:
                middle_ms = view.end_ms(end_ms - CARRY_MS // 2)
                episode.carried += _count(view, group, rule, episode.from_ms, middle_ms)
                episode.from_ms = middle_ms

    def _as_of_ms(self, rule: str, run: str) -> int:
        return (self._blocks_ms if rule == BLOCKS else self._rules_ms).get(run, 0)

    def due(self, view: View, now_ms: int, *, notify_max_age_ms: int) -> list[Alert]:
        """What is to be published now.

        Live alerts wait while their event time is older than ``notify_max_age_ms``: then it is catching up, and what
        still holds when it has caught up is told once. A replay's alerts reach no sink but the topic and never wait.
        """

        def waits(rule: str, run: str) -> bool:
            return not run and now_ms - self._as_of_ms(rule, run) > notify_max_age_ms

        firing = {alert.key: alert for alert in self._firing(view)}
        due: list[Alert] = []
        for key, told in self._told.items():
            now = firing.get(key)
            if now is None or now.starts_at != told.starts_at:
                due.append(self._resolved(told, view))
        for key, alert in firing.items():
            told_before = self._told.get(key)
            if told_before is None or told_before.starts_at != alert.starts_at or self._grew(told_before, alert):
                due.append(alert)
        return [alert for alert in due if not waits(alert.rule, alert.run)]

    def published(self, alerts: Iterable[Alert]) -> None:
        """The broker has acknowledged these."""
        for alert in alerts:
            if alert.status == "firing":
                self._told[alert.key] = alert
            else:
                self._told.pop(alert.key, None)

    @property
    def firing(self) -> int:
        """How many alerts stand as told."""
        return len(self._told)

    def _grew(self, told: Alert, alert: Alert) -> bool:
        update_ms = self._rules.blocks.update_s * 1000
        return alert.count != told.count and _ms(alert.time) - _ms(told.time) >= update_ms

    def _firing(self, view: View) -> Iterable[Alert]:
        rules = {rule.name: rule for rule in self._rules.rules}
        for (name, group), state in self._states.items():
            if state.firing:
                yield self._rule_alert(rules[name], group, state)
        for (group, rule), episode in self._episodes.items():
            yield self._block_alert(view, group, rule, episode)

    def _rule_alert(self, rule: Rule, group: Group, state: RuleState) -> Alert:
        as_of_ms = self._as_of_ms(rule.name, group.run)
        return Alert(
            key=alert_key(rule.name, group),
            rule=rule.name,
            status="firing",
            severity=rule.severity,
            labels={"tenant": group.tenant, "route": group.route},
            summary=f"{rule.metric} of {group.tenant}/{group.route} is {state.value:.4g} over {rule.windows[0]}, "
            f"threshold {rule.threshold:g}",
            value=state.value,
            threshold=rule.threshold,
            starts_at=iso(state.since_ms or as_of_ms),
            time=iso(as_of_ms),
            run=group.run,
        )

    def _block_alert(self, view: View, group: Group, rule: str, episode: _Episode) -> Alert:
        as_of_ms = self._as_of_ms(BLOCKS, group.run)
        count = episode.carried + _count(view, group, rule, episode.from_ms, view.end_ms(as_of_ms))
        return Alert(
            key=alert_key(BLOCKS, group, rule),
            rule=BLOCKS,
            status="firing",
            severity=self._rules.blocks.severity,
            labels={"tenant": group.tenant, "route": group.route, "rule": rule},
            summary=f"{count} blocked by {rule} on {group.tenant}/{group.route}",
            value=float(count),
            threshold=1.0,
            starts_at=iso(episode.starts_ms),
            time=iso(as_of_ms),
            count=count,
            run=group.run,
        )

    def _resolved(self, told: Alert, view: View) -> Alert:
        as_of_ms = max(self._as_of_ms(told.rule, told.run), _ms(told.time))
        ended = msgspec.structs.replace(told, status="resolved", time=iso(as_of_ms), ends_at=iso(as_of_ms))
        if told.rule != BLOCKS or "rule" not in told.labels:
            return ended
        group = Group(told.labels.get("tenant", ""), told.labels.get("route", ""), told.run)
        starts_ms = _ms(told.starts_at)
        if as_of_ms - starts_ms > CARRY_MS:
            return ended
        end_ms = view.end_ms(as_of_ms)
        count = max(told.count or 0, _count(view, group, told.labels["rule"], starts_ms, end_ms))
        return msgspec.structs.replace(ended, count=count, value=float(count))


def _group(series: Series) -> Group:
    return Group(series.tenant, series.route, series.run)


def _blocks(bucket: Bucket) -> dict[str, int]:
    """Rule → blocks, over both stages."""
    found: dict[str, int] = {}
    for name, number in bucket.counters.items():
        if name.startswith("block:"):
            rule = name.split(":", 2)[2]
            found[rule] = found.get(rule, 0) + number
    return found


def _count(view: View, group: Group, rule: str, start_ms: int, end_ms: int) -> int:
    found = view.collect(start_ms, end_ms, lambda series: group if _group(series) == group else None)
    return _blocks(found[group]).get(rule, 0) if group in found else 0


def _first_block(view: View, group: Group, rule: str, start_ms: int, end_ms: int) -> int:
    at_ms = start_ms
    while at_ms < end_ms and not _count(view, group, rule, at_ms, at_ms + view.bucket_ms):
        at_ms += view.bucket_ms
    return at_ms


def _ms(time: str) -> int:
    return to_ms(datetime.fromisoformat(time))
