"""What `tidegate up` shows: a panel that refreshes in place, plain lines without a terminal, or one JSON line."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

from streams.dev.summary import Summary

__all__ = ["Display", "JsonLine", "Lines", "Panel", "display_for", "facts_of", "summary_of"]

LINES_EVERY_S = 10.0
"""Without a terminal a summary is printed this often."""

EVENTS_SHOWN = 5
"""The panel's last lines: what happened to the processes."""

_EXAMPLE = {"stage": "request", "messages": [{"role": "user", "content": "My card is 4111 1111 1111 1111"}]}
_ORDER = ("allow", "flag", "redact", "block")


class Display(Protocol):
    """Where `tidegate up` speaks to."""

    def step(self, text: str) -> None:
        """What is being waited for during the start."""

    def say(self, text: str) -> None:
        """One event, to be kept in sight."""

    def ready(self, info: Mapping[str, Any]) -> None:
        """Everything answers. ``info``: what ``--json`` prints."""

    def update(self, summary: Summary) -> None:
        """The newest numbers."""

    def close(self) -> None:
        """The last call; leaves the terminal as it was found."""


def display_for(*, as_json: bool) -> Display:
    if as_json:
        return JsonLine()
    console = Console()
    return Panel(console) if console.is_terminal else Lines()


class JsonLine:
    """One line of JSON on stdout when ready; everything else goes to stderr."""

    def step(self, text: str) -> None:
        pass

    def say(self, text: str) -> None:
        print(f"tidegate: {text}", file=sys.stderr, flush=True)

    def ready(self, info: Mapping[str, Any]) -> None:
        print(json.dumps(info), flush=True)

    def update(self, summary: Summary) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """Plain lines on stdout, a summary every 10 s."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._last_step = ""

    def step(self, text: str) -> None:
        if text != self._last_step:
            self._last_step = text
            print(text, flush=True)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def ready(self, info: Mapping[str, Any]) -> None:
        for name, value in facts_of(info):
            print(f"{name:<9} {value}")
        print(flush=True)
        self._next_s = time.monotonic() + LINES_EVERY_S

    def update(self, summary: Summary) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINES_EVERY_S
            print(" | ".join(f"{name} {value}" for name, value in summary_of(summary)), flush=True)

    def close(self) -> None:
        pass


class Panel:
    """For a terminal: the addresses once, so that they can be copied, and below them numbers that refresh in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._live: Live | None = None
        self._summary = Summary()
        self._events: list[str] = []

    def step(self, text: str) -> None:
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        self._status.update(text)

    def say(self, text: str) -> None:
        if self._live is None:
            self._console.print(Text(text), soft_wrap=True)
            return
        self._events = [*self._events, f"{time.strftime('%H:%M:%S')} {text}"][-EVENTS_SHOWN:]
        self._refresh()

    def ready(self, info: Mapping[str, Any]) -> None:
        self._end_status()
        for name, value in facts_of(info):
            self._console.print(Text.assemble((f"{name:<9} ", "bold cyan"), value), soft_wrap=True)
        self._console.print()
        self._live = Live(self._view(), console=self._console, auto_refresh=False)
        self._live.start(refresh=True)

    def update(self, summary: Summary) -> None:
        self._summary = summary
        self._refresh()

    def close(self) -> None:
        self._end_status()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._view(), refresh=True)

    def _view(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        for name, value in summary_of(self._summary):
            alarm = name == "alerts" and self._summary.firing
            grid.add_row(Text(f"{name:<9}", "bold"), Text(value, "bold red" if alarm else ""))
        for event in self._events:
            grid.add_row(Text("event", "bold yellow"), Text(event))
        grid.add_row("", Text("Ctrl-C stops everything", "dim"))
        return grid


def facts_of(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stays the same while it is up, as lines of a name and a text."""
    kafka, redis, processes = info["kafka"], info["redis"], info["processes"]
    metrics = [f"{info['url']}/metrics", *(p["metrics"] for p in processes.values() if p.get("metrics"))]
    own = "in memory only: what it holds is forgotten at the end"
    curl = f"curl -s {info['url']}/v1/guard -H 'content-type: application/json' -d {shlex.quote(json.dumps(_EXAMPLE))}"
    return [
        ("up", f"after {info['ready_s']:.1f} s; profile {info['profile']}"),
        ("sidecar", f"{info['url']}  (open it in a browser for the API)"),
        ("metrics", "  ".join(metrics)),
        ("broker", f"{kafka['bootstrap']}  ({own if kafka['embedded'] else 'not ours'})"),
        ("store", f"{redis['url']}  ({own if redis['embedded'] else 'not ours'})"),
        ("logs", info["logs"]),
        ("try", curl),
    ]


def summary_of(summary: Summary) -> list[tuple[str, str]]:
    """What changes, as lines of a name and a text. Names of rules and actions only: nothing that a producer wrote."""
    counts = (summary.requests, summary.responses, summary.errors)
    told = ["–" if count is None else f"{count:,}" for count in counts]
    lines = [("exchanges", f"{told[0]} requests, {told[1]} responses, {told[2]} of them errors")]
    for path in sorted(summary.decisions):
        by_action = summary.decisions[path]
        text = "  ".join(f"{action} {by_action.get(action, 0):,}" for action in _ORDER)
        if (times := summary.check_ms.get(path)) is not None:
            text += f"  (p50 {times[0]:.0f} ms, p95 {times[1]:.0f} ms)"
        lines.append((path, text))
    firing = ", ".join(f"{rule} ×{count}" if count > 1 else rule for rule, count in sorted(summary.firing.items()))
    lines.append(("alerts", f"firing: {firing}" if firing else "none firing"))
    return lines
