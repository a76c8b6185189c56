"""Alert rules: configs/alerts.yaml, and the pure state machine that ticks in event time.

A rule fires for a (tenant, route, run) when its value reaches the threshold in all its windows, each with at least
``min_events``, for ``for_s``; it resolves when the value in its first (shortest) window falls below ``resolve``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guards.errors import PolicyError
from guards.strict import load_yaml, problems_of
from streams.monitor.sketch import quantiles
from streams.monitor.view import HORIZONS_MS
from streams.monitor.windows import Bucket

__all__ = ["AlertRules", "Group", "Rule", "RuleState", "load_rules", "measure", "parse_rules"]

Severity = Literal["info", "warning", "critical"]
Metric = Literal["error_rate", "duration_p95_ms", "time_to_first_token_p95_ms", "block_rate"]
Window = Literal["1m", "5m", "1h"]


class Rule(BaseModel):
    """One rule. Rates are shares 0..1; latencies milliseconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    metric: Metric
    windows: list[Window] = Field(min_length=1)
    threshold: float = Field(gt=0)
    resolve: float = Field(ge=0, description="Hysteresis: resolved below this.")
    for_s: float = Field(default=0, ge=0, le=86_400)
    min_events: int = Field(default=1, ge=1)
    severity: Severity = "warning"

    @model_validator(mode="after")
    def _sound(self) -> Rule:
        if self.resolve > self.threshold:
            raise ValueError("resolve must not be above threshold")
        widths = [HORIZONS_MS[window] for window in self.windows]
        if widths != sorted(set(widths)):
            raise ValueError("windows must be distinct, the shortest first")
        if self.name == "blocks":
            raise ValueError("the name blocks is taken by the built-in grouping of blocks")
        return self


class BlockAlerts(BaseModel):
    """Blocks are grouped: one alert per tenant, route and rule while they last, with a count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    severity: Severity = "warning"
    quiet_s: int = Field(default=60, ge=5, le=3600, description="Resolved after so long without one.")
    update_s: int = Field(default=15, ge=1, description="A count that grew is told again this often at most.")


class AlertRules(BaseModel):
    """configs/alerts.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[Rule] = Field(default_factory=list)
    blocks: BlockAlerts = BlockAlerts()

    @model_validator(mode="after")
    def _distinct(self) -> AlertRules:
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rules: the name {twice[0]!r} is used twice")
        return self


def parse_rules(text: str, source: str) -> AlertRules:
    """YAML → rules. Raises `PolicyError`, one line per fault, with the nearest right name."""
    try:
        return AlertRules.model_validate(load_yaml(text, source) or {})
    except ValidationError as error:
        raise PolicyError(source, problems_of(error, AlertRules)) from error


def load_rules(path: Path) -> AlertRules:
    return parse_rules(path.read_text(encoding="utf-8"), str(path))


class Group(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    """What rules watch: a route of a tenant, apart for each replay."""

    tenant: str
    route: str
    run: str = ""


def _share(part: int, whole: int) -> tuple[float, int]:
    return (part / whole if whole else 0.0), whole


def _p95(name: str) -> Callable[[Bucket], tuple[float, int]]:
    def p95(bucket: Bucket) -> tuple[float, int]:
        sketch = bucket.sketches.get(name, {})
        values = quantiles(sketch, [0.95])
        return (0.0 if values is None else values[0]), sum(sketch.values())

    return p95


def _block_rate(bucket: Bucket) -> tuple[float, int]:
    decided = {name: n for name, n in bucket.counters.items() if name.startswith("decision:")}
    return _share(sum(n for name, n in decided.items() if name.endswith(":block")), sum(decided.values()))


_METRICS: Final[Mapping[str, Callable[[Bucket], tuple[float, int]]]] = {
    "error_rate": lambda b: _share(b.counters.get("errors", 0), b.counters.get("responses", 0)),
    "duration_p95_ms": _p95("duration_ms"),
    "time_to_first_token_p95_ms": _p95("time_to_first_token_ms"),
    "block_rate": _block_rate,
}


def measure(metric: str, bucket: Bucket) -> tuple[float, int]:
    """The metric's value over a window, and how many events it rests on. The block rate is over both paths."""
    return _METRICS[metric](bucket)


class RuleState(msgspec.Struct):
    """One rule for one group. Times are event time, ms."""

    since_ms: int | None = None
    """Since when the condition has held without a break."""
    firing: bool = False
    value: float = 0.0

    def tick(self, rule: Rule, windows: list[Bucket], as_of_ms: int) -> None:
        """``windows``: the group's sums over ``rule.windows``, in that order."""
        measured = [measure(rule.metric, bucket) for bucket in windows]
        self.value = measured[0][0]
        if self.firing:
            if self.value < rule.resolve or measured[0][1] == 0:
                self.firing = False
                self.since_ms = None
            return
        if not all(value >= rule.threshold and events >= rule.min_events for value, events in measured):
            self.since_ms = None
            return
        if self.since_ms is None:
            self.since_ms = as_of_ms
        self.firing = as_of_ms - self.since_ms >= rule.for_s * 1000

    @property
    def idle(self) -> bool:
        return self.since_ms is None
