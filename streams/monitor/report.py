"""What is told of windows: the JSON of ``GET /v1/windows``, and the records of llm.metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from guards.errors import ConfigError
from guards.strict import nearest
from streams.events import iso
from streams.monitor.sketch import quantiles
from streams.monitor.view import HORIZONS_MS, View
from streams.monitor.windows import Bucket, Series

__all__ = ["METRICS_SCHEMA", "metrics_record", "series_filter", "series_path", "total_json", "windows_json"]

METRICS_SCHEMA: Final = "tidegate.metrics.v1"

_PLAIN: Final = ("requests", "responses", "errors", "input_tokens", "output_tokens")
_TOTALS: Final = (*_PLAIN, "late", "deduplicated", "dead")
_QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def windows_json(
    view: View,
    *,
    horizon: str = "1m",
    series: str | None = None,
    at_ms: int | None = None,
    now_ms: int,
    run: str | None = None,
) -> dict[str, Any]:
    """The windows of all series that match, over exactly ``as_of - horizon <= event time < as_of``.

    ``as_of`` is the end of the bucket that holds ``at_ms`` (without it: the latest event). ``series``:
    ``tenant/route[/model[/prompt version]]``, a prefix, with ``*`` for any; a ``/`` inside a name is written ``%2F``.
    ``run``: only that replay's (or with ``""`` only live traffic); without it all are shown merged.

    Raises `ConfigError` for a horizon or a filter that means nothing.
    """
    width_ms = HORIZONS_MS.get(horizon)
    if width_ms is None:
        raise ConfigError(f"no horizon {horizon!r}{nearest(horizon, HORIZONS_MS)}")
    matches = series_filter(series)

    def group(one: Series) -> Series | None:
        if not matches(one) or (run is not None and one.run != run):
            return None
        return Series(one.tenant, one.route, one.model, one.prompt_name, one.prompt_version)

    end_ms = view.end_ms(view.as_of_ms(now_ms)) if at_ms is None else view.end_ms(at_ms - 1)
    found = view.collect(end_ms - width_ms, end_ms, group)
    return {
        "as_of": iso(end_ms),
        "horizon": horizon,
        "series": [{**_names(one), **_sums(found[one])} for one in sorted(found)],
        "counted": _counted(view),
    }


def total_json(view: View) -> dict[str, Any]:
    """Everything since the topics' start, exact."""
    totals = view.totals()
    return {"total": {name: totals.get(name, 0) for name in _TOTALS}, "counted": _counted(view)}


def metrics_record(view: View, series: Series, end_ms: int) -> dict[str, Any]:
    """``tidegate.metrics.v1``: all horizons of one series, which keeps its ``run`` apart."""
    windows = {}
    for horizon, width_ms in HORIZONS_MS.items():
        found = view.collect_one(series, end_ms - width_ms, end_ms)
        windows[horizon] = _sums(found)
    return {"schema": METRICS_SCHEMA, "as_of": iso(end_ms), **_names(series), "run": series.run, "windows": windows}


def series_path(series: Series) -> str:
    """``tenant/route/model/prompt version``, as a filter takes it."""
    parts = (series.tenant, series.route, series.model, series.prompt_version)
    return "/".join(quote(part, safe="~") for part in parts)


def series_filter(text: str | None) -> Callable[[Series], bool]:
    """``tenant/route[/model[/prompt version]]`` → a predicate. Raises `ConfigError` for more than four parts."""
    parts = [] if not text else [None if part == "*" else unquote(part) for part in text.rstrip("/").split("/")]
    if len(parts) > 4:
        raise ConfigError("a series is tenant/route/model/prompt version; write a '/' inside a name as %2F")

    def matches(series: Series) -> bool:
        names = (series.tenant, series.route, series.model, series.prompt_version)
        return all(part is None or part == name for part, name in zip(parts, names, strict=False))

    return matches


def _names(series: Series) -> dict[str, Any]:
    return {
        "tenant": series.tenant,
        "route": series.route,
        "model": series.model,
        "prompt": {"name": series.prompt_name, "version": series.prompt_version},
    }


def _sums(bucket: Bucket) -> dict[str, Any]:
    counters = bucket.counters
    return {
        **{name: counters.get(name, 0) for name in _PLAIN},
        "cost_usd": counters.get("cost_nano_usd", 0) / 1e9,
        "unpriced": counters.get("unpriced", 0),
        "duration_ms": _quantiles(bucket.sketches.get("duration_ms", {})),
        "time_to_first_token_ms": _quantiles(bucket.sketches.get("time_to_first_token_ms", {})),
        "decisions": _decisions(counters),
        "findings": dict(sorted(_after("finding:", counters).items())),
        "blocks": dict(sorted(_after("block:", counters).items())),
    }


def _quantiles(sketch: Mapping[int, int]) -> dict[str, float] | None:
    values = quantiles(sketch, list(_QUANTILES.values()))
    return None if values is None else {name: round(v, 3) for name, v in zip(_QUANTILES, values, strict=True)}


def _decisions(counters: Mapping[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    """Path → stage → action → count."""
    found: dict[str, dict[str, dict[str, int]]] = {"stream": {}, "inline": {}}
    for name, number in sorted(_after("decision:", counters).items()):
        path, stage, action = name.split(":")
        found.setdefault(path, {}).setdefault(stage, {})[action] = number
    return found


def _after(prefix: str, counters: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(prefix): number for name, number in counters.items() if name.startswith(prefix)}


def _counted(view: View) -> dict[str, dict[str, int]]:
    """With the partitions as strings: keys of JSON."""
    return {topic: {str(p): offset for p, offset in counted.items()} for topic, counted in view.counted().items()}
