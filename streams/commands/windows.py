"""`tidegate windows`: what the monitor has counted, from the sidecar."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from streams.commands.console import JsonOption, PortOption, ProfileOption, print_json, run, show_table

__all__ = ["windows"]

_LABELS = ("tenant", "route", "model", "prompt")


def windows(
    total: Annotated[bool, typer.Option("--total", help="Everything since the topics' start, exact.")] = False,
    series: Annotated[
        str | None, typer.Option(metavar="TENANT/ROUTE[/MODEL[/PROMPT]]", help="A prefix; * stands for any.")
    ] = None,
    horizon: Annotated[Literal["1m", "5m", "1h"], typer.Option(help="Length of the window.")] = "1m",
    at: Annotated[str | None, typer.Option(metavar="RFC3339", help="The window's end. Default: now.")] = None,
    port: PortOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show rolling windows by series (tenant, route, model, prompt version), or totals."""
    from streams.commands.sidecar_api import base_url, get_json

    params = {"total": "true"} if total else {"horizon": horizon, "series": series, "at": at}
    wanted = {name: value for name, value in params.items() if value is not None}
    answer = run(get_json(base_url(port, profile), "/v1/windows", wanted))
    if as_json:
        print_json(answer)
    elif total:
        show_table(("total", "count"), [(name, f"{count:,}") for name, count in answer.get("total", {}).items()])
    else:
        print(f"{answer.get('horizon', horizon)} up to {answer.get('as_of', '?')}")
        show_table(
            (
                *_LABELS,
                "requests",
                "responses",
                "errors",
                "tokens in/out",
                "cost $",
                "p50/p95/p99 ms",
                "decisions",
                "findings",
            ),
            [_row(entry) for entry in answer.get("series", [])],
        )


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    prompt = entry.get("prompt") or {}
    duration = entry.get("duration_ms")
    cost = entry.get("cost_usd")
    return (
        entry.get("tenant"),
        entry.get("route"),
        entry.get("model"),
        " ".join(filter(None, (prompt.get("name"), prompt.get("version")))),
        entry.get("requests"),
        entry.get("responses"),
        entry.get("errors"),
        f"{entry.get('input_tokens', 0):,}/{entry.get('output_tokens', 0):,}",
        "" if cost is None else f"{cost:.4f}",
        "" if not duration else "/".join(f"{duration[name]:.0f}" for name in ("p50", "p95", "p99")),
        _decisions(entry.get("decisions") or {}),
        _counts(entry.get("findings") or {}, at_most=4),
    )


def _decisions(by_path: dict[str, Any]) -> str:
    """Both stages and paths added up: the table is for a glance, --json has them apart."""
    added: dict[str, int] = {}
    for by_stage in by_path.values():
        for counts in by_stage.values():
            for name, count in counts.items():
                added[name] = added.get(name, 0) + count
    return _counts(added, at_most=4)


def _counts(counts: dict[str, int], at_most: int) -> str:
    largest = sorted(counts.items(), key=lambda item: -item[1])
    rest = f" +{len(largest) - at_most}" if len(largest) > at_most else ""
    return ", ".join(f"{name} {count}" for name, count in largest[:at_most]) + rest
